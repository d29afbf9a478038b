"""The server under load: bad requests, latency, memory, a new version, shutdown.

    python benchmarks/serving.py              # everything; half an hour on two cores
    python benchmarks/serving.py --quick      # a few minutes
    python benchmarks/serving.py requests latency     # some parts

It exports EfficientNet-Lite0 for images of 96 pixels and 12 classes, starts the command
`keras_delta serve` as a separate process, and sends requests from this one. The images
are patches of photographs, 40 pixels wide, as JPEG and PNG; for `latency`, JPEGs of 400
pixels.

- `requests`: good ones and ten kinds of malformed ones, 16 at a time: does each get the
  right status, and each good one the answer of the SavedModel in this process?
- `latency`: a server that batches and one that does not, in turns.
- `memory`: resident set of the server, and its slope over the second half.
- `swap`: version 2 appears under load; its labels differ, so they show who answered.
- `stop`: SIGTERM under load. Every request sent before it must be answered.

Failures are listed at the end; the exit code is then 1.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from quiet import tf  # first: it silences TensorFlow's start-up

import httpx
import numpy as np
import pandas as pd
from PIL import Image
import keras_delta as kd

PARTS = ("requests", "latency", "memory", "swap", "stop")
SIZE = 96  # pixels that the network sees
SMALL, LARGE = 40, 400  # pixels of what is sent
NAME = "photographs"
TOLERANCE = 1e-5  # of scores; the network adds in another order in larger batches
# The server may not have looked yet at what was sent so many seconds before a signal.
GRACE, IN_FLIGHT = 0.25, "in flight at SIGTERM"
URL = f"/v1/models/{NAME}:predict"
JSON = {"Content-Type": "application/json"}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; none: all")
    add("--quick", action="store_true", help="fewer requests, one round")
    add("--requests", type=int, default=1000, help="for the part `requests`")
    add("--memory-requests", type=int, default=10_000, help="for the part `memory`")
    add("--latency-requests", type=int, default=200, help="per round and setting")
    add("--rounds", type=int, default=3, help="rounds of the part `latency`")
    add("--at-once", type=int, default=16, help="concurrent requests")
    add("--seed", type=int, default=0)
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; there are {', '.join(PARTS)}")
    args.parts = args.parts or list(PARTS)
    if args.quick:
        args.requests //= 5
        args.memory_requests //= 10
        args.latency_requests //= 5
        args.rounds = 1
    return args


# What is sent


def encoded(pixels, form, side=None):
    image = Image.fromarray(pixels)
    if side is not None:
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def request(*images):
    rows = [{"b64": base64.b64encode(image).decode()} for image in images]
    return json.dumps({"instances": rows}).encode()


def malformed(image):
    """Dict from kinds to (path, headers, body, the right status)."""
    text = base64.b64encode(image).decode()

    def chunk(name, data):
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10_000, 5_000, 8, 2, 0, 0, 0))
    vast = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    huge = b'{"instances": [{"b64": "' + b"A" * 20_000_000 + b'"}]}'
    missing = json.dumps({"instances": [{"picture": {"b64": text}}]}).encode()
    wrong = json.dumps({"instances": [{"b64": "*" + text}]}).encode()
    plain = {"Content-Type": "image/jpeg"}
    unknown = "/v1/models/unknown:predict"
    return {
        "truncated JPEG": (URL, JSON, request(image[: len(image) // 2]), 400),
        "text for an image": (URL, JSON, request(b"no image at all"), 400),
        "0 bytes": (URL, JSON, request(b""), 400),
        "50 megapixels": (URL, JSON, request(vast), 400),
        "wrong JSON": (URL, JSON, request(image)[:-3], 400),
        "wrong base64": (URL, JSON, wrong, 400),
        "missing field": (URL, JSON, missing, 400),
        "wrong content type": (URL, plain, image, 415),
        "unknown model": (unknown, JSON, request(image), 404),
        "huge body": (URL, JSON, huge, 413),
    }


def answer(response):
    """List of (labels, scores) of a good answer."""
    rows = response.json()["predictions"]
    return [(row["labels"], row["scores"]) for row in rows]


def offline(folder, images):
    """What the SavedModel in this process answers."""
    classify = tf.saved_model.load(str(folder)).signatures["classify_bytes"]
    found = []
    for image in images:
        one = classify(image_bytes=tf.constant([image]))
        labels = [label.decode() for label in one["labels"][0].numpy()]
        found.append((labels, one["scores"][0].numpy()))
    return found


# The server and its clients


class Server:
    """`keras_delta serve` as a process."""

    def __init__(self, folder, log, *options):
        self._log, self._began = log, time.perf_counter()
        command = [sys.executable, "-m", "keras_delta", "serve", folder, "--port", "0"]
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, options)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def wait(self):
        """Return once it is ready: (its URL, seconds since it was started)."""
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        if found is None:
            self.process.wait()
            self._log.seek(0)
            sys.exit(f"The server did not start: {line}{self._log.read()}")
        self.url = found[0]
        while self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    break
            time.sleep(0.1)
        return self.url, time.perf_counter() - self._began

    @property
    def resident(self):
        """Resident set in MB."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE") / 1e6

    def close(self):
        """End it, however that goes; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


@contextlib.contextmanager
def serving(folder, *options):
    with tempfile.TemporaryFile("w+") as log:
        server = Server(folder, log, *options)
        try:
            server.wait()
            yield server
        finally:
            if server.process.poll() is None:
                server.close()


def client(server, at_once, keep_alive=True):
    return httpx.AsyncClient(
        base_url=server.url,
        timeout=120,
        verify=False,  # there is no TLS here, and its certificates take time to read
        limits=httpx.Limits(max_keepalive_connections=at_once if keep_alive else 0),
    )


async def ask(server, requests, at_once, on_answer=None):
    """Send (path, headers, body) requests; a list of (response or error, seconds)."""
    found, numbers = [None] * len(requests), iter(range(len(requests)))
    async with client(server, at_once) as http:

        async def worker():
            for i in numbers:
                path, headers, body, *_ = requests[i]
                began = time.perf_counter()
                try:
                    got = await http.post(path, headers=headers, content=body)
                except httpx.HTTPError as error:
                    got = error
                found[i] = got, time.perf_counter() - began
                if on_answer is not None:
                    on_answer(i)

        await asyncio.gather(*(worker() for _ in range(at_once)))
    return found


def status(got):
    if isinstance(got, httpx.Response):
        return str(got.status_code)
    return type(got).__name__


def milliseconds(seconds, share):
    return float(np.percentile(seconds, share)) * 1000


# The parts. Each gives a list of what is not as it must be


def part_requests(args, folder, images):
    """Good and malformed requests, mixed."""
    rng = np.random.default_rng(args.seed)
    expected = offline(folder / "1", images)
    kinds = malformed(images[0])
    count = args.requests // 10 // len(kinds) * len(kinds)
    sent = [kind for kind in kinds for _ in range(count // len(kinds))]
    sent += [int(i) for i in rng.integers(0, len(images), args.requests - count)]
    sent = [sent[i] for i in rng.permutation(len(sent))]
    good = [(URL, JSON, request(image), 200) for image in images]
    requests = [good[what] if isinstance(what, int) else kinds[what] for what in sent]
    complaints = []
    with serving(folder) as server:
        began = time.perf_counter()
        found = asyncio.run(ask(server, requests, args.at_once))
        seconds = time.perf_counter() - began
        alive = server.process.poll() is None
        ready = alive and httpx.get(f"{server.url}/readyz").status_code == 200
    if not ready:
        complaints.append("the server is not ready after these requests")
    counts = collections.Counter()
    differences, others = [], 0
    for what, (_, _, _, right), (got, _) in zip(sent, requests, found, strict=True):
        kind = "good" if isinstance(what, int) else what
        counts[kind, right, status(got)] += 1
        if kind == "good" and status(got) == "200":
            ((labels, scores),) = answer(got)
            others += labels != expected[what][0]
            differences.append(np.abs(expected[what][1] - scores).max())
    rows = [
        {"request": kind, "right status": right, "status": got, "count": n}
        for (kind, right, got), n in sorted(counts.items())
    ]
    print(f"\n{len(sent)} requests, {args.at_once} at a time, {seconds:.1f} s\n")
    print(pd.DataFrame(rows).to_string(index=False))
    wrong = [r for r in rows if str(r["right status"]) != r["status"]]
    complaints += [f"{r['request']}: status {r['status']}" for r in wrong]
    print(
        f"\n{len(differences)} good answers compared with the SavedModel in this "
        f"process: {others} with other labels, scores differ by {max(differences):.1e} "
        "at most"
    )
    if others or max(differences) > TOLERANCE:
        complaints.append("answers differ from those of the SavedModel")
    return complaints


def part_latency(args, folder, images):
    """With and without batching, in turns."""
    bodies = [(URL, JSON, request(image)) for image in images]
    settings = {"batches of up to 16": (), "one by one": ("--max-batch-size", 1)}
    cells = collections.defaultdict(lambda: ([], []))  # latencies, seconds of rounds
    failed = collections.Counter()
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(folder, *options))
            for name, options in settings.items()
        }
        for server in servers.values():
            asyncio.run(ask(server, bodies[:100], 16))
        for turn in range(args.rounds):
            for at_once in (1, 4, 16):
                # Whoever comes first, comes last in the next round.
                for name in list(servers)[:: 1 - 2 * (turn % 2)]:
                    count = args.latency_requests
                    sent = [bodies[i % len(bodies)] for i in range(count)]
                    began = time.perf_counter()
                    found = asyncio.run(ask(servers[name], sent, at_once))
                    latencies, rounds = cells[at_once, name]
                    rounds.append(time.perf_counter() - began)
                    latencies += [seconds for _, seconds in found]
                    failed.update(s for got, _ in found if (s := status(got)) != "200")
    rows = [
        {
            "at once": at_once,
            "server": name,
            "p50 ms": milliseconds(latencies, 50),
            "p95 ms": milliseconds(latencies, 95),
            "requests a second": len(latencies) / sum(rounds),
            "slowest round": args.latency_requests / max(rounds),
            "fastest round": args.latency_requests / min(rounds),
        }
        for (at_once, name), (latencies, rounds) in sorted(cells.items())
    ]
    print(
        f"\n{args.latency_requests} requests of a JPEG of {LARGE} x {LARGE} pixels, in "
        f"{args.rounds} rounds; client and server share the machine\n"
    )
    print(pd.DataFrame(rows).round(1).to_string(index=False))
    return [f"latency: {n} requests got {s}" for s, n in failed.items()]


def part_memory(args, folder, images):
    """The resident set over many requests."""
    bodies = [(URL, JSON, request(image)) for image in images]
    count = args.memory_requests
    sent = [bodies[i % len(bodies)] for i in range(count)]
    answered, resident = [], []
    with serving(folder) as server:
        asyncio.run(ask(server, sent[:500], args.at_once))
        before = server.resident
        done = 0

        def on_answer(_):
            nonlocal done
            done += 1
            if done % 50 == 0:
                answered.append(done)
                resident.append(server.resident)

        began = time.perf_counter()
        found = asyncio.run(ask(server, sent, args.at_once, on_answer))
        seconds = time.perf_counter() - began
    half = len(answered) // 2
    slope = np.polyfit(answered[half:], resident[half:], 1)[0] * 1000
    table = pd.DataFrame({"requests": answered, "MB": resident}).round(1)
    print(
        f"\nResident set of the server over {count} requests, {args.at_once} at a time "
        f"({count / seconds:.0f} a second), after 500 to warm up: {before:.0f} MB\n"
    )
    print(table.iloc[9 :: max(1, len(table) // 10)].to_string(index=False))
    print(f"\nSlope over the second half: {slope:+.2f} MB in 1,000 requests")
    bad = sum(status(got) != "200" for got, _ in found)
    complaints = [f"memory: {bad} requests failed"] if bad else []
    if slope > 1 and not args.quick:
        complaints.append(f"memory grows by {slope:.2f} MB in 1,000 requests")
    return complaints


def part_swap(args, folder, images):
    """Version 2 appears while requests come in."""
    bodies = [(URL, JSON, request(image)) for image in images]
    expected = offline(folder / "1", images)
    found, events = [], {}

    async def run(server):
        stop = asyncio.Event()
        numbers = iter(range(10**9))
        async with client(server, args.at_once) as http:

            async def worker():
                while not stop.is_set():
                    i = next(numbers) % len(bodies)
                    began = time.perf_counter()
                    try:
                        got = await http.post(URL, headers=JSON, content=bodies[i][2])
                    except httpx.HTTPError as error:
                        got = error
                    found.append((began, time.perf_counter(), i, got))

            async def swap():
                await asyncio.sleep(2 if args.quick else 5)
                await asyncio.to_thread(second_version, folder)
                events["there"] = time.perf_counter()
                while not any(version(got) == 2 for _, _, _, got in found[-64:]):
                    if time.perf_counter() > events["there"] + 180:
                        break
                    await asyncio.sleep(0.05)
                events["answered"] = time.perf_counter()
                await asyncio.sleep(2 if args.quick else 5)
                stop.set()

            await asyncio.gather(swap(), *(worker() for _ in range(args.at_once)))

    def version(got):
        """1, 2, or None where an answer is not that of either."""
        if status(got) != "200":
            return None
        ((labels, _),) = answer(got)
        return 2 if labels[0].isupper() else 1

    with serving(folder, "--poll-seconds", 1) as server:
        asyncio.run(run(server))
    shutil.rmtree(folder / "2")
    counts, wrong = collections.Counter(), 0
    for _, _, i, got in found:
        number = version(got)
        counts[number or status(got)] += 1
        if number is not None:
            ((labels, scores),) = answer(got)
            right = expected[i][0]
            wrong += labels != ([r.upper() for r in right] if number == 2 else right)
            wrong += np.abs(expected[i][1] - scores).max() > TOLERANCE
    # Whoever asked after version 2 had answered is answered by it.
    first = min((e for _, e, _, got in found if version(got) == 2), default=np.inf)
    late = sum(version(got) == 1 for b, _, _, got in found if b > first)
    calm = [e - b for b, e, _, _ in found if e < events["there"]]
    around = [e - b for b, e, _, _ in found if events["there"] <= e <= first + 1]
    rows = [{"answered by version": k, "requests": n} for k, n in counts.items()]
    print(f"\nVersion 2 appears under load, {args.at_once} requests at a time\n")
    print(pd.DataFrame(rows).to_string(index=False))
    print(
        f"\nWrong answers: {wrong}; by version 1 after version 2: {late}. It answered "
        f"{events['answered'] - events['there']:.1f} s after its folder was there.\n"
        f"Slowest answer: {max(calm) * 1000:.0f} ms before, "
        f"{max(around) * 1000:.0f} ms while it was loaded; p95 "
        f"{milliseconds(calm, 95):.0f} and {milliseconds(around, 95):.0f} ms"
    )
    complaints = [
        f"swap: {n} requests got {k}" for k, n in counts.items() if k not in (1, 2)
    ]
    if not counts[1] or not counts[2]:
        complaints.append("swap: not both versions have answered")
    if wrong or late:
        complaints.append(f"swap: {wrong} wrong answers, {late} of the old version")
    return complaints


def second_version(folder):
    """The same network with its labels in capitals, in one step."""
    temporary = folder / ".2.copy"
    shutil.copytree(folder / "1", temporary)
    labels = temporary / "assets" / "labels.txt"
    labels.write_text(labels.read_text("utf-8").upper(), "utf-8")
    temporary.rename(folder / "2")


def part_stop(args, folder, images):
    """SIGTERM while requests are worked on."""
    each = 8
    body = request(*images[:each])
    expected = offline(folder / "1", images[:each])
    found, events = [], {}

    async def run(server):
        stop = asyncio.Event()

        async def worker(http):
            while not stop.is_set():
                sent = np.inf

                async def trace(name, info):
                    nonlocal sent
                    if name == "http11.send_request_body.complete":
                        sent = time.perf_counter()

                try:
                    got = await http.post(
                        URL, headers=JSON, content=body, extensions={"trace": trace}
                    )
                except httpx.HTTPError as error:
                    got = error
                    await asyncio.sleep(0.02)
                found.append((sent, time.perf_counter(), got))

        async def terminate():
            await asyncio.sleep(3)
            events["signal"] = time.perf_counter()
            server.process.send_signal(signal.SIGTERM)
            events["code"] = await asyncio.to_thread(server.process.wait, 120)
            events["end"] = time.perf_counter()
            stop.set()

        # A connection for each request, as of many clients.
        async with client(server, args.at_once, keep_alive=False) as http:
            await asyncio.gather(
                terminate(), *(worker(http) for _ in range(args.at_once))
            )

    with serving(folder) as server:
        asyncio.run(run(server))
    counts, wrong = collections.Counter(), 0
    for sent, ended, got in found:
        early = events["signal"] - sent
        when = "later" if early < -GRACE else "around SIGTERM"
        if early > GRACE:
            when = IN_FLIGHT if ended > events["signal"] else "answered before"
        counts[when, status(got)] += 1
        if status(got) == "200":
            for (labels, scores), (names, values) in zip(
                answer(got), expected, strict=True
            ):
                wrong += labels != names or np.abs(values - scores).max() > TOLERANCE
    rows = [
        {"sent": when, "result": result, "requests": n}
        for (when, result), n in sorted(counts.items())
    ]
    print(f"\nSIGTERM under load, {args.at_once} requests of {each} images at a time\n")
    print(pd.DataFrame(rows).to_string(index=False))
    print(
        f"\nExit code {events['code']} after {events['end'] - events['signal']:.1f} s; "
        f"wrong answers: {wrong}"
    )
    complaints = [
        f"stop: {n} requests {when} got {result}"
        for (when, result), n in counts.items()
        if when in (IN_FLIGHT, "answered before") and result != "200"
    ]
    if not any(when == IN_FLIGHT for when, _ in counts):
        complaints.append("stop: nothing was in flight at SIGTERM")
    if events["code"] or wrong:
        complaints.append(f"stop: exit code {events['code']}, {wrong} wrong answers")
    return complaints


def main():
    args = arguments()
    photos = kd.data.embedded_photographs(colour=True, seed=args.seed)["test"]
    pixels = photos.arrays(SMALL, dtype="uint8")[0]
    small = [encoded(p, ("JPEG", "PNG")[i % 2]) for i, p in enumerate(pixels)]
    source = kd.backbones.efficientnet_lite0(
        weights="imagenet", input_shape=(SIZE, SIZE, 3)
    )
    model = kd.attach_head(source, classes=len(photos.class_names))
    print(
        f"efficientnet_lite0, {SIZE} px, {len(photos.class_names)} classes, "
        f"{os.cpu_count()} cores (TensorFlow {tf.__version__})",
        flush=True,
    )
    complaints = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / NAME
        kd.export_for_serving(model, folder, photos.class_names)
        for part in args.parts:
            images = small
            if part == "latency":
                images = [encoded(p, "JPEG", LARGE) for p in pixels[:100]]
            complaints += globals()[f"part_{part}"](args, folder, images)
            sys.stdout.flush()
    print()
    for complaint in complaints:
        print(f"NOT AS IT MUST BE: {complaint}")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
