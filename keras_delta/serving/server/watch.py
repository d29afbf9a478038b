"""Handling around each request: its log line, metrics and the rest of its body."""

import asyncio
import contextlib
import logging
import time

log = logging.getLogger("keras_delta.server")
QUIET = ("live", "ready", "metrics")  # requested every few seconds
DRAIN_SECONDS = 5.0


class Watch:
    """ASGI middleware for logging and metrics.

    Before an error is sent, the rest of the body is read and discarded, up to `drain`
    bytes, since many clients read no answer before they have sent everything.
    """

    def __init__(self, app, metrics, drain):
        self._app, self._metrics, self._drain = app, metrics, drain

    async def __call__(self, scope, receive, send):
        """Answer one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began, status, whole, read = time.perf_counter(), 500, False, 0

        async def received():
            nonlocal whole, read
            message = await receive()
            read += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            return message

        async def rest():
            while not whole and read < self._drain:
                await received()

        async def sent(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and not whole and self._short(scope):
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        await asyncio.wait_for(rest(), DRAIN_SECONDS)
            await send(message)

        try:
            await self._app(scope, received, sent)
        finally:
            self._note(scope, status, time.perf_counter() - began)

    def _short(self, scope):
        told = dict(scope["headers"]).get(b"content-length", b"0")
        return told.isdigit() and int(told) <= self._drain

    def _note(self, scope, status, seconds):
        about = scope.get("state", {}).get("about", {})
        endpoint = about.get("endpoint", "other")
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._metrics.requests.labels(endpoint, method, status).inc()
        self._metrics.seconds.labels(endpoint).observe(seconds)
        if endpoint in QUIET:
            return
        path = scope.get("raw_path", b"").decode("latin-1", "replace")[:200]
        images = about.get("images")
        text = "" if images is None else f", {images} image{'s' * (images != 1)}"
        if "error" in about:
            text += f", {about['error']}"
        log.info(
            "%d %s %s, %.0f ms%s", status, scope["method"], path, seconds * 1000, text
        )
