"""`python -m keras_delta.tuning`: a search by several processes of one machine."""

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_delta.tuning import launch, status

PROGRAM = "python -m keras_delta.tuning"
DESCRIPTION = """
Runs a script that searches with keras_delta.tuning in several processes: a chief, which
hands out the cells, and workers, which train. A process that dies is started again.
After the search, the script runs once more as if started by hand: `search` returns at
once, and what follows it, such as `fit_best`, runs then and only then.
"""
EPILOG = """
Ctrl-C stops the search, and the same command goes on with it. Exit codes: that of the
script's last run; 1 if the search is not complete; 2 for bad arguments; 130 after
Ctrl-C.
"""
# What makes a process a part of a search.
OWN = (
    "KERASTUNER_TUNER_ID",
    "KERASTUNER_ORACLE_IP",
    "KERASTUNER_ORACLE_PORT",
    status.WORKERS,
    status.PATH,
)
NO_GPU = "-1"  # for CUDA_VISIBLE_DEVICES


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

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
        help="GPUs to use, such as 0,1, shared out in turn; default: all",
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
        help="folder for what the processes print; default: search-logs, here",
    )
    p.add_argument("script", type=_script, metavar="script.py")
    p.add_argument("args", nargs=argparse.REMAINDER, help="arguments of the script")
    return p


def main(arguments=None):
    """Run the command line; does not return after a search that is complete."""
    p = parser()
    if os.name != "posix":
        p.error("needs Linux or macOS; on Windows, use WSL")
    options = p.parse_args(arguments)
    try:
        gpus = [] if options.cpu else chosen_gpus(options.gpus)
        check_writable(options.logs)
        port = options.port or free_port()
    except ValueError as error:
        p.error(str(error))
    count = options.workers or max(1, len(gpus))
    command = [sys.executable, options.script, *options.args]
    display = launch.display()
    with tempfile.TemporaryDirectory(prefix="keras_delta-") as folder:
        chief, *workers = processes(
            command, devices(gpus, count), port, options.logs, Path(folder)
        )
        where = f"{count} worker{'s' * (count > 1)} on {_described(gpus)}"
        display.say(f"A chief and {where}; their output: {options.logs}/*.log")
        if count > len(gpus) > 0:
            display.say(
                f"There are more workers than GPUs, {count} for {len(gpus)}: they "
                "share them, and their memory. Use fewer if memory runs out."
            )
        search = launch.Search(chief, workers, Path(folder), options.script, display)
        code = search.run()
    if code:
        return code
    display.say(f"The search is complete. {options.script} runs once more:")
    sys.stdout.flush()
    # This process becomes the script: signals and exit code are its own.
    os.execve(command[0], command, ordinary(os.environ))


def processes(command, devices, port, logs, folder):
    """The chief's `Process`, and one for each worker.

    Args:
        command: list of strings.
        devices: list of dicts of environment variables, one for each worker.
        port: the chief's.
        logs: `Path`, folder of the logs.
        folder: `Path`, folder of the status files.
    """
    names = [f"worker-{i}" for i in range(len(devices))]
    chief = {"CUDA_VISIBLE_DEVICES": NO_GPU}
    made = []
    for name, device in zip(["chief", *names], [chief, *devices], strict=True):
        env = {
            "PYTHONUNBUFFERED": "1",  # logs tell what happens now
            **ordinary(os.environ),
            **device,
            "KERASTUNER_TUNER_ID": name,
            "KERASTUNER_ORACLE_IP": "127.0.0.1",
            "KERASTUNER_ORACLE_PORT": str(port),
            status.WORKERS: ",".join(names),
            status.PATH: str(folder / f"{name}.json"),
        }
        made.append(launch.Process(name, command, env, logs / f"{name}.log"))
    return made


def ordinary(env):
    """The variables of a process that has no part in a parallel search."""
    return {k: v for k, v in env.items() if k not in OWN}


def devices(gpus, count):
    """Variables for each of `count` workers: a GPU, or a share of the cores.

    Args:
        gpus: ids, as of `chosen_gpus`.
        count: number of workers.
    """
    if gpus:
        every = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}  # nvidia-smi counts so
        if "CUDA_DEVICE_ORDER" in os.environ:
            every = {}
        if count > len(gpus):
            every["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        return [
            {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **every} for i in range(count)
        ]
    threads = str(max(1, cores() // count))
    name = "TF_NUM_INTRAOP_THREADS"
    variables = {
        "CUDA_VISIBLE_DEVICES": NO_GPU,
        name: os.environ.get(name, threads),
    }
    return [variables] * count


def cores():
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_gpus(text=None):
    """Ids of the GPUs to use.

    Args:
        text: ids with commas in between; None for all.

    Raises:
        ValueError: for ids that are not known.
    """
    known = visible_gpus()
    if text is None:
        return known
    wanted = [part.strip() for part in text.split(",")]
    unknown = [gpu for gpu in wanted if gpu not in known]
    if not known:
        raise ValueError(
            f"argument --gpus: there is no GPU here that could be {text}; nvidia-smi "
            "lists none, or CUDA_VISIBLE_DEVICES hides them. Use --cpu."
        )
    if unknown or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"argument --gpus: expected some of {','.join(known)}, each once, "
            f"received {text}"
        )
    return wanted


def visible_gpus():
    """Ids of all GPUs, as CUDA_VISIBLE_DEVICES or `nvidia-smi` has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        ids = [part.strip() for part in visible.split(",")]
        hidden = [i for i, part in enumerate(ids) if part in ("", NO_GPU)]
        return ids[: hidden[0]] if hidden else ids  # as CUDA reads it
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
        )
        return listed_gpus(listed.stdout) if listed.returncode == 0 else []
    return []


def listed_gpus(text):
    """Ids in the output of `nvidia-smi -L`: numbers, or the parts of a split GPU."""
    found = []
    for line in text.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        part = re.match(r"\s+MIG .*UUID: (MIG-[^)]+)\)", line)
        if gpu:
            found.append((gpu[1], []))
        elif part and found:
            found[-1][1].append(part[1])
    return [name for gpu, parts in found for name in parts or [gpu]]


def _described(gpus):
    if not gpus:
        return f"{cores()} CPU core{'s' * (cores() > 1)}"
    return f"GPU{'s' * (len(gpus) > 1)} {', '.join(gpus)}"


def check_writable(folder):
    """Make a folder, and see whether files can be made there.

    Raises:
        ValueError: if not.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"argument --logs: cannot write to {folder}: {error.strerror}"
        ) from None


def free_port():
    """A port that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


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
        # What an ended search leaves behind for a minute does not count.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", int(text)))
        except OSError as error:
            raise argparse.ArgumentTypeError(
                f"port {text} cannot be had: {error.strerror}. Choose another, or "
                "leave it out for a free one"
            ) from None
    return int(text)


def _script(text):
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return text


if __name__ == "__main__":
    sys.exit(main())
