"""A server for models of `export_for_serving`: REST, metrics and a page for photos.

It implements TensorFlow Serving's REST API on Starlette and uvicorn, and batches with
TensorFlow Serving's own batching kernel, which TensorFlow provides as an operation. It
only uses the SavedModel and its model card.
"""

from keras_delta._errors import import_optional
from keras_delta.serving.server.command import add_arguments as add_arguments
from keras_delta.serving.server.command import main as main
from keras_delta.serving.server.command import run as run
from keras_delta.serving.server.settings import Settings


def app(folder, **settings):
    """The server as an ASGI application, for uvicorn or any other ASGI server.

    It loads the newest version in the background; `/readyz` then answers 200.

    Args:
        folder: `NAME`, with versions `NAME/1`, `NAME/2`, ...; NAME is the model's name.
        **settings: fields of `keras_delta.serving.server.settings.Settings`.

    Returns:
        `starlette.applications.Starlette`.

    Raises:
        FileNotFoundError: if there is no version.
        TypeError, ValueError: if a setting is invalid, or the name in a URL.
        ImportError: if the packages of the extra `serving` are missing.
    """
    for package in ("starlette", "prometheus_client"):
        import_optional(package, "The server", "serving")
    from keras_delta.serving.server.application import application

    return application(folder, Settings(**settings))
