"""The endpoints: TensorFlow Serving's REST, health, metrics and the page."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from starlette.responses import Response

from keras_delta.serving.server import answers, body, page
from keras_delta.serving.server.metrics import Metrics
from keras_delta.serving.server.model import Model
from keras_delta.serving.server.problems import Problem, busy, too_slow
from keras_delta.serving.server.versions import Versions

log = logging.getLogger("keras_delta.server")


class Service:
    """The endpoints of one model, no longer ready once `stopping` is set."""

    def __init__(self, folder, settings, on_failure=None):
        self.name, self._settings = folder.name, settings
        self.metrics = Metrics()
        self.versions = Versions(
            folder, self._load, settings.poll_seconds, self._swapped, on_failure
        )
        self.stopping = False
        self._slots = threading.BoundedSemaphore(settings.queue)
        # A thread waits while its images are in a batch: two batches' worth of them
        # keeps the network at work, and some decode meanwhile.
        threads = min(settings.queue, 2 * settings.max_batch_size + 4)
        self._pool = ThreadPoolExecutor(threads, "request")

    def start(self):
        """Load the model in the background."""
        self.versions.start()

    def stop(self):
        """Accept no more work."""
        self.stopping = True
        self.versions.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def alive(self, request):
        """200 while the process is running."""
        _about(request, "live")
        return json_response({"status": "alive"})

    async def ready(self, request):
        """200 once a model is loaded and warmed up, until the server stops."""
        _about(request, "ready")
        if self.stopping:  # late requests are still answered
            raise busy("The server is stopping.", seconds=5)
        model = self._model()
        return json_response({"status": "ready", "version": str(model.version)})

    async def measured(self, request):
        """Metrics in Prometheus's format."""
        _about(request, "metrics")
        text, kind = self.metrics.text()
        return Response(text, headers={"Content-Type": kind})

    async def page(self, request):
        """The page for photos."""
        _about(request, "page")
        text, headers = page.rendered(self.name)
        return Response(text, media_type="text/html", headers=headers)

    async def status(self, request):
        """State of the versions."""
        _about(request, "status")
        self._check_name(request)
        states = self.versions.states()
        version = request.path_params.get("version")
        if version is not None:
            states = {v: s for v, s in states.items() if str(v) == version}
            if not states:
                raise _unknown_version(version)
        rows = []
        for number, (state, error) in states.items():
            code = "INTERNAL" if error else "OK"
            about = {"error_code": code, "error_message": error}
            rows.append({"version": str(number), "state": state, "status": about})
        return json_response({"model_version_status": rows})

    async def metadata(self, request):
        """Signatures with types and shapes."""
        _about(request, "metadata")
        self._check_name(request)
        return json_response(self._model(request.path_params.get("version")).metadata)

    async def predict(self, request):
        """Answers of a signature."""
        _about(request, "predict")
        return await self._worked(request, answers.predict)

    async def explain(self, request):
        """Maps of where classes are seen in a photo."""
        _about(request, "explain")
        return await self._worked(request, answers.explain)

    async def _worked(self, request, function):
        """The answer of `function(model, body, settings, deadline)`, in a thread."""
        self._check_name(request)
        deadline = time.monotonic() + self._settings.timeout
        # From here on the request is in flight and keeps this model.
        model = self._model(request.path_params.get("version"))
        body.check_type(request)
        if not self._slots.acquire(blocking=False):
            raise busy(
                f"{self._settings.queue} requests are already waiting. Try again."
            )
        self.metrics.waiting.inc()
        submitted = False
        try:
            contents = await body.read(request, self._settings.max_body, deadline)
            work = self._submitted(function, model, contents, deadline)
            submitted = True
        finally:
            if not submitted:
                self.metrics.waiting.dec()
                self._slots.release()
        del contents
        try:
            left = max(deadline - time.monotonic(), 0.001)
            text, images = await asyncio.wait_for(asyncio.wrap_future(work), left)
        except TimeoutError:
            raise too_slow(self._settings) from None
        request.state.about["images"] = images
        about = {"Model-Version": str(model.version)}
        return Response(text, media_type="application/json", headers=about)

    def _submitted(self, function, model, contents, deadline):
        begun = threading.Event()

        def work():
            begun.set()
            self.metrics.waiting.dec()
            self.metrics.running.inc()
            try:
                if time.monotonic() > deadline:
                    raise too_slow(self._settings)
                answer, images = function(model, contents, self._settings, deadline)
                return answers.encoded(answer), images
            finally:
                self.metrics.running.dec()

        def done(_):
            self._slots.release()
            if not begun.is_set():  # cancelled
                self.metrics.waiting.dec()

        try:
            future = self._pool.submit(work)
        except RuntimeError:  # the pool is shut
            raise busy("The server is stopping.") from None
        future.add_done_callback(done)
        return future

    def _check_name(self, request):
        name = request.path_params["name"]
        if name != self.name:
            text = f"Unknown model {name[:100]!r}. This server has {self.name!r}."
            raise Problem(404, text)

    def _model(self, version=None):
        model = self.versions.current
        if model is None:
            raise busy("The model is still being loaded.", seconds=5)
        if version not in (None, str(model.version)):
            raise _unknown_version(version, model.version)
        return model

    def _load(self, folder):
        began = time.perf_counter()
        try:
            model = Model(folder, self._settings, self.metrics.batch_sizes.observe)
        except Exception:
            self.metrics.loads.labels("failed").inc()
            raise
        self.metrics.loads.labels("loaded").inc()
        seconds = time.perf_counter() - began
        log.info("version %s loaded in %.1f s", folder.name, seconds)
        return model

    def _swapped(self, model):
        self.metrics.version.set(model.version)
        log.info("version %d of %r is served", model.version, self.name)


def json_response(answer, status=200, headers=None):
    """An answer in JSON."""
    text = answers.encoded(answer)
    return Response(text, status, headers, media_type="application/json")


def _about(request, endpoint):
    request.state.about = {"endpoint": endpoint}


def _unknown_version(version, served=None):
    hint = "" if served is None else f" Version {served} is served."
    return Problem(404, f"Version {version[:100]!r} does not exist.{hint}")
