"""Runs a script in several processes, and keeps them running."""

import os
import socket
import sys
import tempfile
from pathlib import Path

from keras_delta._runs import devices, status
from keras_delta._runs.display import display
from keras_delta._runs.process import Process
from keras_delta._runs.supervisor import Supervisor

CHIEF = "chief"
IP, PORT = "KERASTUNER_ORACLE_IP", "KERASTUNER_ORACLE_PORT"
# What makes a process a part of a run.
OWN = (status.NAME, IP, PORT, status.WORKERS, status.PATH)


def launch(command, count, gpus, logs, port=None):
    """Run a script in several processes, and then once more as an ordinary one.

    Args:
        command: list of strings: Python, the script, its arguments.
        count: number of workers.
        gpus: ids to share out; empty: the workers share the cores.
        logs: `Path` of a folder for what the processes print.
        port: where a chief listens, which hands out the work; None for no chief.

    Returns:
        Exit code of a run that is not complete; else this process becomes the script.
    """
    window = display()
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="keras_delta-") as folder:
        shares = devices.shares(gpus, count)
        processes = _processes(command, shares, port, logs, Path(folder))
        who = f"{count} worker{'s' * (count > 1)} on {devices.describe(gpus)}"
        who = who if port is None else f"A chief and {who}"
        window.say(f"{who}; their output: {logs}/*.log")
        if count > len(gpus) > 0:
            window.say(
                f"There are more workers than GPUs, {count} for {len(gpus)}: they "
                "share them, and their memory. Use fewer if memory runs out."
            )
        chief = None if port is None else processes.pop(0)
        run = Supervisor(chief, processes, Path(folder), command[1], window)
        code = run.run()
    if code:
        return code
    window.say(f"The search is complete. {command[1]} runs once more:")
    sys.stdout.flush()
    # This process becomes the script: signals and exit code are its own.
    os.execve(command[0], command, _without_part(os.environ))


def _processes(command, shares, port, logs, folder):
    """A `Process` for each worker; before them the chief, if there is a port."""
    names = [f"worker-{i}" for i in range(len(shares))]
    common = {status.WORKERS: ",".join(names)}
    parts = dict(zip(names, shares, strict=True))
    if port is not None:
        common |= {IP: "127.0.0.1", PORT: str(port)}
        parts = {CHIEF: devices.NO_GPU, **parts}
    return [
        Process(
            name,
            command,
            {
                "PYTHONUNBUFFERED": "1",  # logs tell what happens now
                **_without_part(os.environ),
                **share,
                **common,
                status.NAME: name,
                status.PATH: str(folder / f"{name}.json"),
            },
            Path(logs) / f"{name}.log",
        )
        for name, share in parts.items()
    ]


def _without_part(env):
    """The variables of a process that has no part in a run."""
    return {k: v for k, v in env.items() if k not in OWN}


def free_port():
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
