"""The endpoints: TensorFlow Serving's REST, health, metrics and the page."""

import asyncio
import contextlib
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from keras_delta.serving.folders import versions_in
from keras_delta.serving.server import answers, body, page
from keras_delta.serving.server.metrics import Metrics
from keras_delta.serving.server.model import Model
from keras_delta.serving.server.problems import Problem, busy, too_slow
from keras_delta.serving.server.versions import Versions
from keras_delta.serving.server.watch import Watch

log = logging.getLogger("keras_delta.server")
FORBIDDEN = "/:?#%"


class _Name(Convertor):
    """A model's name in a path: what comes behind a colon is what to do."""

    regex = "[^/:]+"

    def convert(self, value):
        return value

    def to_string(self, value):
        return value


register_url_convertor("model", _Name())


def application(folder, settings, on_failure=None):
    """The server's ASGI application.

    Args:
        folder: `NAME`, with a folder for each version.
        settings: `Settings`.
        on_failure: called where no version can be loaded.

    Returns:
        `Starlette`; `state.service` is the `Service` behind it.

    Raises:
        FileNotFoundError: where there is no version.
        ValueError: for a name that does not fit into a URL.
    """
    service = Service(check(folder), settings, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        service.start()
        yield
        service.stop()

    routes = [
        Route("/healthz", service.alive),
        Route("/readyz", service.ready),
        Route("/metrics", service.measured),
    ]
    one = "/v1/models/{name:model}"
    for base in (one, f"{one}/versions/{{version:model}}"):
        routes += [
            Route(f"{base}:predict", service.predict, methods=["POST"]),
            Route(f"{base}:explain", service.explain, methods=["POST"]),
            Route(f"{base}/metadata", service.metadata),
            Route(base, service.status),
        ]
    if settings.page:
        routes.append(Route("/", service.page))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(Watch, metrics=service.metrics, drain=4 * settings.max_body)
        ],
        exception_handlers={
            Problem: _problem,
            HTTPException: _http,
            Exception: _internal,
        },
    )
    app.state.service = service
    return app


def check(folder):
    """The folder of a model as an absolute `Path`, if there is a version in it."""
    folder = Path(folder).resolve()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise FileNotFoundError(f"'{folder}' {what}; a model is a folder.")
    if (folder / "saved_model.pb").exists():
        raise FileNotFoundError(
            f"'{folder}' is a version of a model. Pass the folder above it, "
            f"'{folder.parent}', whose name is the model's."
        )
    models = [path.name for path in folder.iterdir() if _is_model(path)]
    if not versions_in(folder) and models:
        raise FileNotFoundError(
            f"'{folder}' has no version of a model, but models are in it. Did you "
            f"mean '{folder / min(models)}'?"
        )
    if not versions_in(folder):
        raise FileNotFoundError(
            f"'{folder}' has no version of a model, no folder '1'. Write one with "
            f"`keras_delta.export_for_serving(model, '{folder.name}', class_names)`."
        )
    if any(character in folder.name for character in FORBIDDEN):
        raise ValueError(
            f"The folder's name, {folder.name!r}, is the model's name in URLs, where "
            f"it cannot have any of {' '.join(FORBIDDEN)}. Rename it."
        )
    return folder


def _is_model(path):
    return path.is_dir() and bool(versions_in(path))


class Service:
    """The endpoints of one model.

    Args:
        folder: `Path` of `NAME`.
        settings: `Settings`.
        on_failure: called where no version can be loaded.

    Attributes:
        busy: whether a thread is inside of TensorFlow.
        metrics: `Metrics`.
        name: of the model.
        stopping: set this when the process is about to end: it is not ready any more.
        versions: `Versions`.
    """

    def __init__(self, folder, settings, on_failure=None):
        self.name, self._settings = folder.name, settings
        self.metrics = Metrics()
        self.versions = Versions(
            folder,
            self._load,
            settings.poll_seconds,
            self._swapped,
            on_failure,
        )
        self.stopping = False
        self._slots = threading.BoundedSemaphore(settings.queue)
        # A thread waits while its images are in a batch: two batches' worth of them
        # keeps the network at work, and some decode meanwhile.
        threads = min(settings.queue, 2 * settings.max_batch_size + 4)
        self._pool = ThreadPoolExecutor(threads, "request")
        self._at_work = 0
        self._lock = threading.Lock()

    @property
    def busy(self):
        """Whether a thread works on a request or loads a model."""
        return self._at_work > 0 or self.versions.loading is not None

    def start(self):
        """Load the model in the background."""
        self.versions.start()

    def stop(self):
        """Take no more work."""
        self.stopping = True
        self.versions.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def alive(self, request):
        """200 while the process is."""
        _about(request, "live")
        return _json({"status": "alive"})

    async def ready(self, request):
        """200 once a model is loaded and warmed up, until the server stops."""
        _about(request, "ready")
        if self.stopping:  # what comes in all the same is still answered
            raise busy("The server is stopping.", seconds=5)
        model = self._model()
        return _json({"status": "ready", "version": str(model.version)})

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
        rows = [
            {
                "version": str(number),
                "state": state,
                "status": {
                    "error_code": "INTERNAL" if error else "OK",
                    "error_message": error,
                },
            }
            for number, (state, error) in states.items()
        ]
        return _json({"model_version_status": rows})

    async def metadata(self, request):
        """Signatures with types and shapes."""
        _about(request, "metadata")
        self._check_name(request)
        return _json(self._model(request.path_params.get("version")).metadata)

    async def predict(self, request):
        """Answers of a signature."""
        _about(request, "predict")
        return await self._worked(request, answers.predict)

    async def explain(self, request):
        """Where in a photo classes are seen."""
        _about(request, "explain")
        return await self._worked(request, answers.explain)

    async def _worked(self, request, function):
        """The answer of `function(model, body, settings, deadline)`, in a thread."""
        self._check_name(request)
        deadline = time.monotonic() + self._settings.timeout
        # From here on the request is in flight: it keeps this model, come what may.
        model = self._model(request.path_params.get("version"))
        body.check_type(request)
        if not self._slots.acquire(blocking=False):
            raise busy(f"{self._settings.queue} requests wait already. Try again.")
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
        except (TimeoutError, asyncio.TimeoutError):
            raise too_slow(self._settings) from None
        request.state.about["images"] = images
        return Response(
            text,
            media_type="application/json",
            headers={"Model-Version": str(model.version)},
        )

    def _submitted(self, function, model, contents, deadline):
        begun = threading.Event()

        def work():
            begun.set()
            self.metrics.waiting.dec()
            self._count(+1)
            try:
                if time.monotonic() > deadline:
                    raise too_slow(self._settings)
                answer, images = function(model, contents, self._settings, deadline)
                return answers.encoded(answer), images
            finally:
                self._count(-1)

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

    def _count(self, change):
        with self._lock:
            self._at_work += change
        self.metrics.running.inc(change)

    def _check_name(self, request):
        name = request.path_params["name"]
        if name != self.name:
            raise Problem(
                404, f"There is no model {name[:100]!r} here, but {self.name!r}."
            )

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
        log.info(
            "version %s loaded in %.1f s", folder.name, time.perf_counter() - began
        )
        return model

    def _swapped(self, model):
        self.metrics.version.set(model.version)
        log.info("version %d of %r is served", model.version, self.name)


def _about(request, endpoint):
    request.state.about = {"endpoint": endpoint}


def _json(answer, status=200, headers=None):
    text = answers.encoded(answer)
    return Response(text, status, headers, media_type="application/json")


def _unknown_version(version, served=None):
    hint = "" if served is None else f" Version {served} is served."
    return Problem(404, f"Version {version[:100]!r} is not there.{hint}")


async def _problem(request, problem):
    about = getattr(request.state, "about", None)
    if about is not None:
        about["error"] = problem.text
    return _json({"error": problem.text}, problem.status, problem.headers)


async def _http(request, error):
    text = error.detail
    if error.status_code == 404:
        text = f"There is nothing at {request.url.path[:200]!r}."
    if error.status_code == 405:
        allowed = error.headers["Allow"]
        text = f"{request.method} is not allowed here, but {allowed}."
    return _json({"error": text}, error.status_code, error.headers)


async def _internal(request, error):
    return _json(
        {"error": "Something went wrong in the server; its log has more."}, 500
    )
