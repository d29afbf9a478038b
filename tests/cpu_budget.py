"""Pytest plugin: what tests cost, in seconds of CPU; fails those that cost too much.

CPU and not wall time: a busy machine makes a test wait, not work. All threads count,
TensorFlow's and those of a server under test, and child processes that have ended.
"""

import os
from collections import Counter

import pytest

_CLOCK = pytest.StashKey[float]()


def _clock():
    return sum(os.times()[:4])  # user, system, and the children's


def pytest_addoption(parser):
    add = parser.addoption
    add("--cpu", action="store_true", help="list the files and tests that cost most")
    add("--cpu-limit", type=float, default=5.0, help="seconds a test may cost")


def pytest_runtest_setup(item):
    if _CLOCK not in item.config.stash:  # the first test does not pay for imports
        item.config.stash[_CLOCK] = _clock()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    now = _clock()
    spent = now - item.config.stash.get(_CLOCK, now)
    item.config.stash[_CLOCK] = now
    report.user_properties = [*report.user_properties, ("cpu", spent)]
    is_slow = item.get_closest_marker("slow") is not None
    limit = item.config.getoption("cpu_limit")
    if call.when == "call" and report.passed and spent > limit and not is_slow:
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} used {spent:.1f} s of CPU. A test of `make test` may use "
            f"{limit:g} s: make it smaller, or mark it `slow`."
        )
    return report


def pytest_terminal_summary(terminalreporter):
    folders, files, tests = Counter(), Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            spent = dict(getattr(report, "user_properties", ())).get("cpu")
            if spent is None:
                continue
            file = report.nodeid.split("::")[0]
            folder = os.path.dirname(file) + (" (slow)" * ("slow" in report.keywords))
            folders[folder] += spent
            files[file] += spent
            tests[report.nodeid] += spent
    if not folders:
        return
    terminalreporter.section("CPU seconds")
    for folder, spent in sorted(folders.items()):
        terminalreporter.line(f"{spent:7.1f} {folder}")
    terminalreporter.line(f"{folders.total():7.1f} in all")
    if terminalreporter.config.getoption("cpu"):
        for title, counts in (("Files", files), ("Tests", tests)):
            terminalreporter.section(f"{title} by CPU seconds")
            for name, spent in counts.most_common(30):
                terminalreporter.line(f"{spent:7.1f} {name}")
