"""`python -m keras_delta.tuning`: a search by several processes on one machine."""

import argparse
import os
import socket
import sys
from pathlib import Path

from keras_delta import _disk
from keras_delta._runs import devices
from keras_delta._runs.launch import free_port, launch

PROGRAM = "python -m keras_delta.tuning"
DESCRIPTION = """
Runs a script that searches with keras_delta.tuning in several processes: a chief, which
hands out the cells, and workers, which train. A process that dies is restarted. After
the search, the script runs once more as if started by hand: `search` returns at once,
and any code after it, such as `fit_best`, runs only then.
"""
EPILOG = """
Ctrl-C stops the search; the same command resumes it. Exit codes: that of the script's
last run; 1 if the search is incomplete; 2 for bad arguments; 130 after Ctrl-C.
"""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message):
        """Exit with code 2."""
        self.exit(2, f"{PROGRAM}: {message}\n")


def parser():
    """The command line."""
    p = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    p.add_argument(
        "--workers",
        type=_workers,
        metavar="N",
        help="number of processes that train; default: one for each GPU, or one",
    )
    where = p.add_mutually_exclusive_group()
    where.add_argument(
        "--gpus",
        metavar="IDS",
        help="GPUs to use, such as 0,1, assigned in turn; default: all",
    )
    where.add_argument(
        "--cpu", action="store_true", help="use no GPU; the workers share the cores"
    )
    p.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="port of the chief on this machine; default: a free one",
    )
    p.add_argument(
        "--logs",
        type=Path,
        default=Path("search-logs"),
        metavar="DIR",
        help="folder for the output of the processes; default: ./search-logs",
    )
    p.add_argument("script", type=_script, metavar="script.py")
    p.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return p


def main(arguments=None):
    """Run the command line; does not return after a complete search."""
    p = parser()
    if os.name != "posix":
        p.error("needs Linux or macOS; on Windows, use WSL")
    options = p.parse_args(arguments)
    try:
        gpus = [] if options.cpu else devices.chosen_gpus(options.gpus)
        _disk.check_writable("--logs", options.logs)
    except ValueError as error:
        p.error(str(error))
    command = [sys.executable, options.script, *options.args]
    count = options.workers or max(1, len(gpus))
    return launch(command, count, gpus, options.logs, options.port or free_port())


def _workers(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f"expected a positive integer, received {text}"
        )
    return int(text)


def _port(text):
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(
            f"expected a number from 1 to 65535, received {text}"
        )
    with socket.socket() as trial:
        # Ignore the state that an ended search leaves behind for a minute.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise argparse.ArgumentTypeError(
                f"port {text} is not available: {error.strerror}. Choose another, or "
                "omit it to use a free one"
            ) from None
    return int(text)


def _script(text):
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"file {text} does not exist")
    return text


if __name__ == "__main__":
    sys.exit(main())
