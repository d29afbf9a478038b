"""The command `keras_delta`: `predict`, `report` and `serve`.

It lies beside the package and not in it, because importing anything of `keras_delta`
imports TensorFlow, which takes seconds and writes notes to the terminal. This file
needs Python alone, so `keras_delta --help` is there at once; TensorFlow comes, quietly,
when a command needs it. `python -m keras_delta` does the same, after the import.
"""

import argparse
import contextlib
import importlib
import os
import sys
import tempfile
from importlib import metadata

PROGRAM = "keras_delta"
DESCRIPTION = """
Uses and looks at fine-tuned models.
"""
EPILOG = """
`keras_delta COMMAND --help` explains a command. Exit codes: 0; 1 if it failed; 2 for a
command line that cannot be understood; 130 after Ctrl-C (`serve` ends with 0).
"""
# What has `add_arguments(parser)` and `run(args)`, and its line in the help.
COMMANDS = {
    "predict": ("keras_delta.serving.predict", "label the images of a folder"),
    "report": ("keras_delta.analysis.reporting.command", "write a page about a model"),
    "serve": ("keras_delta.serving.server", "start an HTTP server for a model"),
}
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments=None):
    """Run a command line.

    Args:
        arguments: list of strings; default: those of the process.

    Returns:
        The exit code.
    """
    sys.stderr.reconfigure(errors="backslashreplace")
    sys.stdout.reconfigure(errors="backslashreplace")
    chosen = parser().parse_args(arguments)
    module, _ = COMMANDS[chosen.command]
    try:
        with quietly():
            command = importlib.import_module(module)
        options = Parser(
            prog=f"{PROGRAM} {chosen.command}",
            description=command.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(options)
        return command.run(options.parse_args(chosen.arguments)) or 0
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nStopped.", file=sys.stderr)
        return INTERRUPTED
    # What the package raises on purpose, in words for people.
    except (ValueError, OSError, ImportError) as error:
        print(f"{PROGRAM} {chosen.command}: {error}", file=sys.stderr)
        return 1


def parser():
    """The command line, up to the command; its own arguments come later."""
    lines = [f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()]
    p = Parser(
        prog=PROGRAM,
        usage=f"{PROGRAM} [--help] [--version] COMMAND ...",
        description="\n".join([DESCRIPTION.strip(), "", "commands:", *lines]),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = metadata.version("keras_delta")
    p.add_argument("--version", action="version", version=f"{PROGRAM} {version}")
    p.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    p.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return p


@contextlib.contextmanager
def quietly():
    """Hold back what is written to standard error; show it if something fails.

    TensorFlow's C++ side writes there before any setting of Python can reach it, so
    the file descriptor itself is turned aside.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            sys.stderr.flush()
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    sys.exit(main())
