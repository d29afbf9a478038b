"""New versions, signals and starts that fail, of real server processes."""

import json
import shutil
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from served import Server, b64, encoded, export_brightest, until

from keras_delta.serving.server import main

FILE = encoded(np.full((8, 9, 3), [70, 80, 40], np.uint8))
BODY = json.dumps({"instances": [b64(FILE)]}).encode()
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Versions of the same name that say which one they are."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    found = {version: folder / str(version) for version in (1, 2, 4)}
    for path in found.values():
        export_brightest(path)
    return found


def labels(answer):
    return answer["predictions"][0]["labels"]


def state(server, version):
    path = f"/v1/models/tiny/versions/{version}"
    answer = server.client.get(path)
    if answer.status_code == 404:
        return None, ""
    (row,) = answer.json()["model_version_status"]
    return row["state"], row["status"]["error_message"]


@pytest.mark.slow
def test_versions_are_swapped_under_load(versions, tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    shutil.copytree(versions[1], folder / "1")
    (folder / "notes").mkdir()  # no version
    server = Server(folder, "--poll-seconds", "0.3")
    answers, stop = [], threading.Event()

    def ask():
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while not stop.is_set():
                answers.append(client.post(server.predict, content=BODY, headers=JSON))
                time.sleep(0.02)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        # A new version, renamed into its place as an export does it.
        shutil.copytree(versions[2], folder / ".2.tmp")
        (folder / ".2.tmp").rename(folder / "2")
        server.wait_for_version(2)
        # A broken one is left out, and said once.
        (folder / "3").mkdir()
        (folder / "3" / "saved_model.pb").write_bytes(b"no model")
        until(lambda: state(server, 3)[0] == "END", 30, server)
        assert state(server, 3)[1] != ""
        assert state(server, 2) == ("AVAILABLE", "")
        # A half-copied one is tried again when it is whole.
        shutil.copytree(
            versions[4], folder / "4", ignore=shutil.ignore_patterns("variables")
        )
        until(lambda: state(server, 4)[0] == "END", 30, server)
        shutil.copytree(versions[4] / "variables", folder / "4" / "variables")
        server.wait_for_version(4)
        time.sleep(1)
        # A version that is taken away makes way for the one before.
        shutil.rmtree(folder / "4")
        server.wait_for_version(2)
        # The last one is not given up.
        shutil.rmtree(folder)
        time.sleep(1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        output = server.output
        server.kill()
    assert [a.text for a in answers if a.status_code != 200] == []
    order = []
    for answer in answers:
        version = int(answer.headers["model-version"])
        assert labels(answer.json()) == [f"green {version}", f"red {version}"]
        order.append(version)
    assert set(order) == {1, 2, 4}
    assert order[0] == 1 and order[-1] == 2
    assert (
        len([x for x in output.splitlines() if "version 3 cannot be loaded" in x]) == 1
    )
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_in_flight_finish(versions, number):
    server = Server(versions[1].parent)  # serves the newest, 4
    address = server.client.base_url.host, server.client.base_url.port
    head = (
        f"POST {server.predict} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
    )
    idle = httpx.Client(base_url=server.url)
    try:
        assert idle.get("/readyz").json()["version"] == "4"
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}\r\n".encode() + BODY[:100])
            until(lambda: server.metric("keras_delta_queue_length") == 1, 20, server)
            server.process.send_signal(number)
            until(lambda: not ready(server), 20, server)
            connection.sendall(BODY[100:])
            connection.settimeout(30)
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        answer = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert labels(answer) == ["green 4", "red 4"]
        assert server.ended() == 0
        assert "Traceback" not in server.output
    finally:
        idle.close()
        server.kill()


def ready(server):
    try:
        return httpx.get(f"{server.url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_versions_that_cannot_be_loaded_end_the_start(tmp_path):
    broken = tmp_path / "tiny" / "1"
    broken.mkdir(parents=True)
    (broken / "saved_model.pb").write_bytes(b"no model")
    server = Server(tmp_path / "tiny", wait=False)
    try:
        assert server.ended(120) == 1
    finally:
        server.kill()
    assert "version 1 cannot be loaded" in server.output
    assert "No version of 'tiny' can be loaded." in server.output
    assert "Traceback" not in server.output


def test_starts_that_fail_say_why(versions, tmp_path, capsys):
    folder = versions[1].parent

    def said(*arguments):
        assert main([str(a) for a in arguments]) == 1
        return capsys.readouterr().err.strip()

    assert "does not exist" in said(tmp_path / "nowhere")
    assert "contains no version of a model, such as '1'" in said(tmp_path)
    assert f"Pass the folder above it, '{folder}'" in said(folder / "1")
    bad = tmp_path / "a:b"
    (bad / "1").mkdir(parents=True)
    assert "Rename it" in said(bad)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = said(folder, "--port", port)
    assert text == (
        f"keras_delta serve: Cannot listen on 127.0.0.1:{port}: the port is already "
        "in use. Choose another --port, or 0."
    )
    assert "Cannot listen on 'no.such" in said(folder, "--host", "no.such.host.invalid")
    assert "Expected a positive integer" in said(folder, "--queue", "0")
    assert "`timeout`" in said(folder, "--timeout", "nan")
