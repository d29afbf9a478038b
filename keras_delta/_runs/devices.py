"""GPUs and cores of this machine, assigned to processes."""

import contextlib
import os
import re
import shutil
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
NO_GPU = {VISIBLE: "-1"}
THREADS = "TF_NUM_INTRAOP_THREADS"


def shares(gpus, count):
    """Environment variables for each of `count` workers: a GPU, or some cores."""
    if not gpus:
        threads = os.environ.get(THREADS, str(max(1, cores() // count)))
        return [{**NO_GPU, THREADS: threads}] * count
    every = {}
    if "CUDA_DEVICE_ORDER" not in os.environ:
        every["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # nvidia-smi counts so
    if count > len(gpus):
        every["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return [{VISIBLE: gpus[i % len(gpus)], **every} for i in range(count)]


def cores():
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chosen_gpus(text=None):
    """Ids of the GPUs to use."""
    known = visible_gpus()
    if text is None:
        return known
    wanted = [part.strip() for part in text.split(",")]
    if not known:
        raise ValueError(
            f"argument --gpus: there is no GPU here that could be {text}; nvidia-smi "
            f"lists none, or {VISIBLE} hides them. Use --cpu."
        )
    if not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"argument --gpus: expected some of {','.join(known)}, each once, "
            f"received {text}"
        )
    return wanted


def visible_gpus():
    """Ids of all GPUs, as CUDA_VISIBLE_DEVICES or `nvidia-smi` has them."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        ids = [part.strip() for part in visible.split(",")]
        hidden = [i for i, part in enumerate(ids) if part in ("", NO_GPU[VISIBLE])]
        return ids[: hidden[0]] if hidden else ids  # as CUDA reads it
    if shutil.which("nvidia-smi") is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60
        )
        return _listed_gpus(listed.stdout) if listed.returncode == 0 else []
    return []


def _listed_gpus(text):
    """Ids in the output of `nvidia-smi -L`: numbers, or the parts of a split GPU."""
    gpus = []
    for line in text.splitlines():
        gpu = re.match(r"GPU (\d+):", line)
        part = re.match(r"\s+MIG .*UUID: (MIG-[^)]+)\)", line)
        if gpu:
            gpus.append((gpu[1], []))
        elif part and gpus:
            gpus[-1][1].append(part[1])
    return [name for gpu, parts in gpus for name in parts or [gpu]]


def describe(gpus):
    """What the processes run on, as the end of a sentence."""
    if not gpus:
        return f"{cores()} CPU core{'s' * (cores() > 1)}"
    return f"GPU{'s' * (len(gpus) > 1)} {', '.join(gpus)}"
