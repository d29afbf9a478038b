"""The server as an application: its routes, and errors as JSON."""

import contextlib
import os
from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from keras_delta.serving.folders import versions_in
from keras_delta.serving.server.problems import Problem
from keras_delta.serving.server.service import Service, json_response
from keras_delta.serving.server.watch import Watch

FORBIDDEN = "/:?#%"


class _Name(Convertor):
    """A model's name in a path; the action follows a colon."""

    regex = "[^/:]+"

    def convert(self, value):
        return value

    def to_string(self, value):
        return value


register_url_convertor("model", _Name())


def application(folder, settings, on_failure=None):
    """The server's `Starlette` application, with its `Service` as `state.service`.

    Args:
        folder: `NAME`, with a folder for each version.
        settings: `Settings`.
        on_failure: called if no version can be loaded.

    Raises:
        FileNotFoundError: if there is no version.
        ValueError: if the name is not valid in a URL.
    """
    service = Service(check(folder), settings, on_failure)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        service.start()
        yield
        service.stop()

    app = Starlette(
        routes=_routes(service, settings.page),
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
    """The folder of a model as an absolute `Path`, if it contains a version."""
    # Not `resolve`: a link gives the model its name, not the folder that it leads to.
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        remedy = "Pass a folder that `keras_delta.export_for_serving` has written."
        raise FileNotFoundError(f"'{folder}' {what}. {remedy}")
    if (folder / "saved_model.pb").exists():
        raise FileNotFoundError(
            f"'{folder}' is a version of a model. Pass the folder above it, "
            f"'{folder.parent}', whose name is the model's."
        )
    if not versions_in(folder):
        folders = [path for path in folder.iterdir() if path.is_dir()]
        models = [path for path in folders if versions_in(path)]
        call = f"keras_delta.export_for_serving(model, '{folder.name}', class_names)"
        remedy = f"Write one with `{call}`."
        if models:
            remedy = f"Did you mean '{min(models)}'?"
        raise FileNotFoundError(
            f"'{folder}' contains no version of a model, such as '1'. {remedy}"
        )
    if any(character in folder.name for character in FORBIDDEN):
        raise ValueError(
            f"The folder's name, {folder.name!r}, is the model's name in URLs, so it "
            f"must not contain any of {' '.join(FORBIDDEN)}. Rename it."
        )
    return folder


def _routes(service, with_page):
    routes = [
        Route("/healthz", service.alive),
        Route("/readyz", service.ready),
        Route("/metrics", service.measured),
    ]
    model = "/v1/models/{name:model}"
    for base in (model, f"{model}/versions/{{version:model}}"):
        routes += [
            Route(f"{base}:predict", service.predict, methods=["POST"]),
            Route(f"{base}:explain", service.explain, methods=["POST"]),
            Route(f"{base}/metadata", service.metadata),
            Route(base, service.status),
        ]
    return routes + [Route("/", service.page)] * with_page


async def _problem(request, problem):
    about = getattr(request.state, "about", None)
    if about is not None:
        about["error"] = problem.text
    return json_response({"error": problem.text}, problem.status, problem.headers)


async def _http(request, error):
    text = error.detail
    if error.status_code == 404:
        text = f"Nothing found at {request.url.path[:200]!r}."
    if error.status_code == 405:
        allowed = error.headers["Allow"]
        text = f"{request.method} is not allowed here. Allowed: {allowed}."
    return json_response({"error": text}, error.status_code, error.headers)


async def _internal(request, error):
    return json_response(
        {"error": "Internal server error; see the server's log for details."}, 500
    )
