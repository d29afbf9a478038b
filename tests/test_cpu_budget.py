"""Tests that cost too much fail, and everyone sees what tests cost."""

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import subprocess, sys, threading, time
import pytest

WORK = "import time\\nwhile time.process_time() < 0.4: pass"

def work():
    end = time.thread_time() + 0.3
    while time.thread_time() < end: pass

@pytest.fixture(scope="module")
def dear():
    work()

def test_waits():
    time.sleep(0.3)

def test_fixture(dear):
    pass

def test_works():
    work()

def test_threads():
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

def test_children():
    subprocess.run([sys.executable, "-c", WORK])

def test_fails():
    work()
    assert False, "for its own reason"

@pytest.mark.slow
def test_marked():
    work()
"""


@pytest.fixture
def run(pytester):
    pytester.makeini("[pytest]\nmarkers = slow")
    pytester.makepyfile(test_costs=TESTS)

    def run(*args):
        own = ("-p", "cpu_budget", "-p", "no:xdist", "--cpu-limit", "0.2")
        return pytester.runpytest_inprocess(*own, *args)

    return run


def test_work_fails_and_waiting_does_not(run):
    result = run()
    result.assert_outcomes(passed=3, failed=4)
    for name in ("works", "threads", "children"):
        result.stdout.fnmatch_lines(
            [f"test_costs.py::test_{name} used * s of CPU.*mark it `slow`."]
        )
    result.stdout.fnmatch_lines(["*for its own reason*"])


def test_the_sum_is_shown(run):
    result = run("-k", "marked or waits or fixture", "--cpu")
    result.stdout.re_match_lines(
        [r".* CPU seconds .*", r" +0\.[3-9] $", r" +0\.[3-9]  \(slow\)", r".* in all"]
    )
    result.stdout.re_match_lines([r" +0\.[3-9] test_costs.py::test_fixture"])


def test_the_sum_is_shown_of_workers(pytester):
    pytester.makepyfile(test_costs=TESTS)
    args = ("-p", "cpu_budget", "-n", "1", "-k", "works")
    result = pytester.runpytest_inprocess(*args)
    result.stdout.re_match_lines([r".* CPU seconds .*", r" +0\.[3-9] $"])
