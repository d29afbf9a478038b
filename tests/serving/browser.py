"""A page in headless Chromium, by its DevTools protocol.

No driver has to be downloaded for this, as Selenium or Playwright would. The browser is
`KERAS_DELTA_BROWSER`, else the first of `NAMES` that is installed.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import httpx
from websockets.sync.client import connect

VARIABLE = "KERAS_DELTA_BROWSER"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


def find():
    """Path of a browser; None where none is installed.

    Raises:
        FileNotFoundError: where `KERAS_DELTA_BROWSER` is no program.
    """
    given = os.environ.get(VARIABLE)
    if given:
        found = shutil.which(given)
        if found is None:
            raise FileNotFoundError(
                f"{VARIABLE}={given!r} is no program. Set it to Chromium or Chrome, or "
                f"unset it for the first of {', '.join(NAMES)}."
            )
        return found
    return next(filter(None, map(shutil.which, (*NAMES, MAC))), None)


class Browser:
    """A browser with one page, closed by `close`."""

    def __init__(self, program, folder):
        self._process = subprocess.Popen(
            [
                program,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en"),
                *("--remote-debugging-port=0", f"--user-data-dir={folder}"),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._open = contextlib.ExitStack()
        try:
            self._socket = self._connected(Path(folder, "DevToolsActivePort"))
        except BaseException:
            self.close()
            raise
        self._ids = itertools.count(1)
        self.messages = []
        for domain in ("Page", "Runtime", "Log", "DOM", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """The result of a method of the protocol."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.messages.append(answer)

    def run(self, script):
        """The value of an expression in the page; promises are awaited."""
        found = self.call(
            "Runtime.evaluate",
            expression=script,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script, seconds=30):
        """Until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}\n{self.errors()}"
            time.sleep(0.05)

    def open(self, url, width=1280, height=800, dark=False):
        """Open an address anew, in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.messages.clear()
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === '{url}'")

    def choose(self, selector, path):
        """Choose a file, as a person does in the dialog."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key, code=None, text=None):
        """Press a key."""
        about = {"key": key, "code": code or key}
        about["windowsVirtualKeyCode"] = {"Tab": 9, "Enter": 13, " ": 32}[key]
        more = {"text": text} if text else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def picture(self, path):
        """Save what the window shows."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=False)
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    def errors(self):
        """What the page complains about: exceptions, refused scripts, failed loads."""
        self.run("1")
        return [
            m
            for m in self.messages
            if m["method"] == "Runtime.exceptionThrown"
            or (
                m["method"] == "Log.entryAdded"
                and m["params"]["entry"]["level"] == "error"
                and m["params"]["entry"]["source"] != "network"
            )
        ]

    def close(self):
        """End the browser and all that it has started."""
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self._open.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _connected(self, file):
        end = time.monotonic() + 60
        while not file.exists() or not file.read_text().strip():
            assert self._process.poll() is None, "the browser ended at its start"
            assert time.monotonic() < end, "the browser does not start"
            time.sleep(0.05)
        port = file.read_text().split()[0]
        while True:
            targets = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
            pages = [t for t in targets if t["type"] == "page"]
            if pages:
                url = pages[0]["webSocketDebuggerUrl"]
                socket = connect(url, max_size=None, open_timeout=60)
                return self._open.enter_context(socket)
            assert time.monotonic() < end, "the browser has no page"
            time.sleep(0.05)
