"""A server for what `export_for_serving` writes: REST, metrics and a page for photos.

It speaks TensorFlow Serving's REST, on Starlette and uvicorn, and batches with
TensorFlow Serving's own batching kernel, which TensorFlow has as an operation. It uses
the SavedModel and its model card alone.
"""

from keras_delta._errors import import_optional
from keras_delta.serving.server.command import add_arguments as add_arguments
from keras_delta.serving.server.command import main as main
from keras_delta.serving.server.command import run as run
from keras_delta.serving.server.settings import Settings


def app(folder, **settings):
    """The server as an ASGI application, for uvicorn or any other ASGI server.

    It loads the newest version in the background: `/readyz` answers 200 from then on.

    Args:
        folder: `NAME`, with versions `NAME/1`, `NAME/2`, ...; NAME is the model's name.
        **settings: fields of `keras_delta.serving.server.settings.Settings`.

    Returns:
        `starlette.applications.Starlette`.

    Raises:
        FileNotFoundError: where there is no version.
        TypeError, ValueError: for other settings and names that do not fit into a URL.
        ImportError: without the packages of the extra `serving`.
    """
    for package in ("starlette", "prometheus_client"):
        import_optional(package, "The server", "serving")
    from keras_delta.serving.server.application import application

    return application(folder, Settings(**settings))
