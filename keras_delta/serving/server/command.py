"""`keras_delta serve NAME`: the server as a command."""

import dataclasses
import errno
import logging
import os
import signal
import socket
import sys
import warnings

from keras_delta._errors import import_optional
from keras_delta.serving.server.settings import Settings
from keras_delta_cli import main as cli

HOST, PORT = "127.0.0.1", 8501


def add_arguments(parser):
    """Add the command's arguments to an `argparse.ArgumentParser`."""
    add = parser.add_argument
    add("folder", help="folder of the model, NAME, with versions NAME/1, NAME/2, ...")
    where = "address to listen on (default %(default)s: only this machine; "
    add("--host", default=HOST, help=f"{where}0.0.0.0: all)")
    free = "0 for a free one (default %(default)s)"
    add("--port", type=int, default=PORT, help=free)
    for field in dataclasses.fields(Settings):
        if field.type is bool:
            continue
        add(
            "--" + field.name.replace("_", "-"),
            type=field.type,
            default=field.default,
            help=f"{field.metadata['help']} (default %(default)s)",
        )
    add("--no-page", action="store_true", help="no page for photos at /")


def main(argv=None):
    """Run `keras_delta serve` with the given arguments, or those of the process."""
    return cli(["serve", *(sys.argv[1:] if argv is None else map(str, argv))])


def run(args):
    """Serve a model until SIGTERM or Ctrl-C.

    Args:
        args: namespace with the arguments of `add_arguments`.

    Returns:
        The exit code, 0 after a normal stop.

    Raises:
        ImportError, OSError, ValueError: if it cannot start, with a readable message.
    """
    for package in ("starlette", "uvicorn", "prometheus_client"):
        import_optional(package, "The server", "serving")
    names = [f.name for f in dataclasses.fields(Settings) if f.name != "page"]
    values = {name: getattr(args, name) for name in names}
    settings = Settings(**values, page=not args.no_page)
    return _serve(args.folder, settings, args.host, args.port)


def _serve(folder, settings, host, port):
    import uvicorn
    from PIL import Image

    from keras_delta.serving.server.application import application

    class Server(uvicorn.Server):
        """Becomes not ready at the signal, before anything else stops."""

        def handle_exit(self, sig, frame):
            service.stopping = True
            super().handle_exit(sig, frame)

    failed = []

    def on_failure():
        failed.append(True)
        server.should_exit = True

    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("keras_delta.server").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    app = application(folder, settings, on_failure)
    service = app.state.service
    listening = _socket(host, port)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    server = Server(config)
    # uvicorn raises a signal again when it has stopped; ignore that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}"
    print(
        f"Serving '{service.name}' at {address} (Ctrl-C stops)\n"
        f"  a page to try it:  {address}\n"
        f'  REST:  POST {{"instances": [{{"b64": "..."}}]}} to '
        f"{address}/v1/models/{service.name}:predict",
        flush=True,
    )
    server.run(sockets=[listening])
    if failed:
        print(f"No version of '{service.name}' can be loaded.", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(len(failed))  # threads beyond the time limit cannot be stopped


def _socket(host, port):
    """A listening socket, or an error with a remedy."""
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is from 0 to 65535, not {port}; 0 uses a free one.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError) as error:
        raise OSError(f"Cannot listen on '{host}:{port}': {error}") from None
    # With its protocol: otherwise asyncio does not see that it is TCP and leaves
    # Nagle's algorithm on, which costs 40 ms per answer.
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen(socket.SOMAXCONN)  # another process may also have bound it
    except OSError as error:
        listening.close()
        reasons = {
            errno.EADDRINUSE: "the port is already in use. Choose another --port, or 0",
            errno.EACCES: "only root may use it. Choose a --port of 1024 or more",
        }
        reason = reasons.get(error.errno, str(error))
        raise OSError(f"Cannot listen on {host}:{port}: {reason}.") from None
    return listening
