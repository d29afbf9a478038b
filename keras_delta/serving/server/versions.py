"""Selects the version to serve: the newest that can be loaded."""

import contextlib
import gc
import logging
import os
import threading

from keras_delta.serving.folders import versions_in
from keras_delta.serving.server.model import FILE

log = logging.getLogger("keras_delta.server")


class Versions:
    """Watches the versions of a model and swaps them without interruption.

    A request keeps the version that it began with; the last request to finish frees its
    memory. If a version fails to load, this is logged once and retried when its files
    have changed. A new version is loaded when its files have not changed between two
    checks, because a folder may be half copied.

    Args:
        folder: `Path` of `NAME`.
        load: function of `NAME/version` that returns a model.
        poll_seconds: seconds between checks.
        on_swap: called with each version as it starts being served.
        on_failure: called if the first check finds no version that can be loaded.
    """

    def __init__(self, folder, load, poll_seconds, on_swap, on_failure=None):
        self._folder, self._load = folder, load
        self._poll, self._on_swap = poll_seconds, on_swap
        self._on_failure = on_failure
        self.current = None
        self._served = None  # fingerprint of what `current` was loaded from
        self._seen, self._failed = {}, {}  # by version
        self.loading = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self):
        """Load in the background, then keep checking."""
        self._thread.start()

    def stop(self):
        """Stop checking."""
        self._stop.set()

    def states(self):
        """Dict from versions to (state, error), in TensorFlow Serving's words."""
        states = {v: ("END", error) for v, (_, error) in list(self._failed.items())}
        loading, current = self.loading, self.current
        if loading is not None:
            states[loading] = ("LOADING", "")
        if current is not None:
            states[current.version] = ("AVAILABLE", "")
        return dict(sorted(states.items(), reverse=True))

    def _watch(self):
        self._check(first=True)
        if self.current is None and self._on_failure is not None:
            self._on_failure()
        while not self._stop.wait(self._poll):
            self._check()

    def _check(self, first=False):
        try:
            self._look(first)
        except OSError as error:  # such as a disconnected network drive
            log.warning("cannot read '%s': %s", self._folder, error)

    def _look(self, first=False):
        """Load the newest version unless it is already being served."""
        for version, path in sorted(versions_in(self._folder).items(), reverse=True):
            now = fingerprint(path)
            settled = self._seen.get(version) == now
            self._seen[version] = now
            current = self.current is not None and version == self.current.version
            if current and now == self._served:
                return
            if version in self._failed and self._failed[version][0] == now:
                continue
            if not (settled or first) or not (first or (path / FILE).exists()):
                continue
            if self._tried(version, path, now):
                return

    def _tried(self, version, path, before):
        self.loading = version
        try:
            model = self._load(path)
            if fingerprint(path) != before:
                raise RuntimeError("its files changed while it was being loaded")
        # TensorFlow raises errors of many kinds; the old version keeps serving.
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            self._failed[version] = (before, reason)
            log.error("version %d cannot be loaded and is skipped: %s", version, reason)
            return False
        finally:
            self.loading = None
        self._failed.pop(version, None)
        self.current, self._served = model, before
        self._on_swap(model)
        gc.collect()  # models contain reference cycles
        return True


def fingerprint(folder):
    """A value that changes with a folder's files, without reading them."""
    files = []
    for path, _, names in os.walk(folder):
        for file in (os.path.join(path, name) for name in names):
            with contextlib.suppress(OSError):  # gone in between
                about = os.stat(file)
                files.append((file, about.st_ino, about.st_size, about.st_mtime_ns))
    return sorted(files)
