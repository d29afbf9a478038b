"""Chief and workers of a parallel search: their connection and saved state.

Keras Tuner distributes a search over processes: one, the chief, has the oracle and
serves it; the others, the workers, train. Its own server and client assume that
processes never die. These here survive the death of either side.
"""

import contextlib
import os
import sys
import time
from concurrent import futures

import grpc

from keras_delta import _compat
from keras_delta._compat import protos
from keras_delta._runs import status
from keras_delta._runs.launch import IP, PORT
from keras_delta.tuning.alone import Alone
from keras_delta.tuning.results import RUNNING, state

POLL = 0.2  # seconds between checks for the end of the search
IDLE = 0.5  # seconds until a worker looks again if there is no cell for it (yet)
PATIENCE = 5  # seconds until a worker says that it is waiting


class Chief(Alone):
    """A process that has the oracle and hands out cells."""

    def search(self, tuner, train):
        """See `Alone.search`."""
        cells, count = tuner.number_of_cells(), len(status.workers())
        if cells is not None and count > cells:
            status.report(
                note=f"There are more workers ({count}) than cells ({cells}): "
                f"{count - cells} of them will have nothing to do."
            )
        tuner.save()
        serve(tuner.oracle)
        tuner.write_table()


class Worker(Alone):
    """A process that trains the cells it gets from the chief."""

    def join(self, oracle, timeout):
        """See `Alone.join`."""
        status.report(state="waiting for the chief")
        connect(oracle, timeout)

    def save(self, oracle):
        """Do nothing: the chief saves."""

    def reload(self, tuner):
        """Only declare the space: the chief loads."""
        tuner.declare_space()

    def search(self, tuner, train):
        """See `Alone.search`; one process writes the table."""
        train()
        if not status.launched():  # else this process ends here
            wait_for_others(tuner)


def serve(oracle):
    """Serve as the chief until the search has ended.

    Like Keras Tuner's `start_server`, but it ends at once rather than within 20
    seconds, waits for workers of the launcher that have not connected yet, rejects a
    port that is in use, and ends with the error if the oracle raises one.
    """
    servicer, errors = _Servicer(oracle), _Errors()
    address = _address()
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=1),
        interceptors=[errors],
        # Otherwise two chiefs would share one port, and each would get some calls.
        options=[("grpc.so_reuseport", 0)],
    )
    protos.get_service_grpc().add_OracleServicer_to_server(servicer, server)
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        ip, _, port = address.rpartition(":")
        message = (
            f"The chief cannot listen on {address}: port {port} is in use by another "
            f"process, or {ip} is not an address of this machine. Choose another port "
            "with the launcher's `--port` or, for chief and workers alike, with "
            "KERASTUNER_ORACLE_PORT; or end the other search."
        )
        status.report(fatal=message)
        raise OSError(message)
    server.start()
    status.report(state="training")
    try:
        while errors.first is None and not servicer.over():
            time.sleep(POLL)
    finally:
        # Calls in progress get their answer if it is quick.
        server.stop(grace=1).wait()
    if errors.first is not None:
        message = f"The search cannot continue: {errors.first}"
        status.report(fatal=message)
        raise RuntimeError(message) from errors.first
    status.report(state="done")


def wait_for_others(tuner):
    """Return once no cell is in training: all processes then find the same winner."""
    said = False
    while running := [c.trial_id for c in tuner.cells() if state(c) == RUNNING]:
        if not said:
            trials = f"trial{'s' * (len(running) > 1)} {', '.join(running)}"
            print(f"Waiting for other workers to end {trials} ...", file=sys.stderr)
            said = True
        time.sleep(IDLE)


def connect(client, timeout=600):
    """Make a worker wait for its chief, and repeat calls that failed when it died.

    All calls may be repeated: a restarted chief (`keep_ongoing`) gives the worker the
    same trial, and ignores the end of a trial that has already ended.
    """
    client.stub = _Patient(_address(), timeout)


def _address():
    """IP address and port of the chief, as in Keras Tuner."""
    ip, port = (os.environ[name] for name in (IP, PORT))
    if not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(
            f"Invalid value for the environment variable {PORT}. Expected a number "
            f"from 1 to 65535. Received: {port!r}"
        )
    return f"{ip}:{port}"


class _Servicer(_compat.oracle_chief.OracleServicer):
    """Keras Tuner's servicer, for workers that die, are abandoned or repeat calls.

    It runs in one thread, the only one that uses the oracle.
    """

    def __init__(self, oracle):
        super().__init__(oracle)
        self.told = set()  # workers informed that the search has ended

    def CreateTrial(self, request, context):
        # Its trial is left over; an oracle may wait for ongoing ones to end.
        for worker in status.ended():
            self.oracle.ongoing_trials.pop(worker, None)
            self.oracle.tuner_ids.discard(worker)
        response = super().CreateTrial(request, context)
        if response.trial.status == protos.get_proto().TrialStatus.STOPPED:
            self.told.add(request.tuner_id)
        return response

    def EndTrial(self, request, context):
        ongoing = self.oracle.ongoing_trials.values()
        if any(trial.trial_id == request.trial.trial_id for trial in ongoing):
            return super().EndTrial(request, context)
        return protos.get_service().EndTrialResponse()  # already reported

    def over(self):
        workers = set(status.workers())
        if workers:
            return workers <= self.told.union(status.ended())
        oracle = self.oracle
        return (
            self.stop_triggered and not oracle.ongoing_trials and not oracle.tuner_ids
        )


class _Errors(grpc.ServerInterceptor):
    """Remembers the first exception of the oracle.

    Keras Tuner leaves the oracle locked after one: the next call would hang.
    """

    first = None

    def intercept_service(self, continuation, details):
        handler = continuation(details)
        if handler is None:
            return None

        def answer(request, context):
            try:
                return handler.unary_unary(request, context)
            except Exception as error:
                self.first = self.first or error
                raise

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )


class _Patient:
    """Keras Tuner's calls to the chief, each repeated until a chief answers.

    gRPC can repeat calls itself, but does not report that it is waiting, and gives up
    after five attempts.
    """

    OPTIONS = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]

    def __init__(self, address, timeout):
        self.address, self.timeout = address, timeout
        self.channel = grpc.insecure_channel(address, options=self.OPTIONS)
        self.stub = protos.get_service_grpc().OracleStub(self.channel)

    def __getattr__(self, name):
        method = getattr(self.stub, name)

        def call(request, wait_for_ready=None, timeout=None):
            response = self._until_answered(method, request, timeout)
            if name == "CreateTrial":
                idle = protos.get_proto().TrialStatus.IDLE
                if response.trial.status == idle:
                    time.sleep(IDLE)  # Keras Tuner asks again at once
            return response

        return call

    def _until_answered(self, method, request, timeout):
        broken = None
        while True:
            self._wait()
            try:
                return method(request, timeout=timeout)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                broken = broken or time.monotonic()
                if time.monotonic() - broken > self.timeout:
                    raise self._nobody() from error
                time.sleep(POLL)

    def _wait(self):
        """Return once a chief is available."""
        ready = grpc.channel_ready_future(self.channel)
        try:
            with contextlib.suppress(grpc.FutureTimeoutError):
                return ready.result(min(PATIENCE, self.timeout))
            print(f"Waiting for the chief at {self.address} ...", file=sys.stderr)
            state = status.told().get("state", "training")
            status.report(state="waiting for the chief")
            try:
                ready.result(max(0, self.timeout - PATIENCE))
            except grpc.FutureTimeoutError:
                raise self._nobody() from None
            print("The chief is available.", file=sys.stderr)
            status.report(state=state)
        finally:
            ready.cancel()

    def _nobody(self):
        return ConnectionError(
            f"No chief has answered at {self.address} for {self.timeout:g} seconds. "
            "`python -m keras_delta.tuning --workers 2 script.py` starts chief and "
            "workers on one machine. By hand, start the same script once more with "
            "KERASTUNER_TUNER_ID=chief and this worker's KERASTUNER_ORACLE_IP and "
            "KERASTUNER_ORACLE_PORT, and check that no firewall blocks the connection."
        )
