"""Metrics of the server, in Prometheus's format."""

import prometheus_client as prometheus

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server.

    Attributes:
        requests: counter by endpoint, method and status.
        seconds: histogram by endpoint, from the first byte to the last.
        batch_sizes: histogram of the number of images that the network saw at once.
        waiting, running: gauges of requests waiting and in progress.
        version: gauge of the model's version, 0 before the first one is loaded.
        loads: counter of versions by outcome, `loaded` or `failed`.
    """

    def __init__(self):
        self._registry = registry = prometheus.CollectorRegistry()
        # Memory, processor time and open files, on Linux.
        prometheus.ProcessCollector(registry=registry)
        prometheus.PlatformCollector(registry=registry)

        def make(kind, name, text, *labels, **more):
            return kind(f"keras_delta_{name}", text, labels, registry=registry, **more)

        counter, gauge = prometheus.Counter, prometheus.Gauge
        by = "endpoint", "method", "status"
        self.requests = make(counter, "requests", "Requests answered", *by)
        about = "request_seconds", "Time to answer a request", "endpoint"
        self.seconds = make(prometheus.Histogram, *about, buckets=SECONDS)
        about = "batch_size", "Images that the network saw at once"
        self.batch_sizes = make(prometheus.Histogram, *about, buckets=SIZES)
        self.waiting = make(gauge, "queue_length", "Requests waiting")
        self.running = make(gauge, "requests_running", "Requests in progress")
        self.version = make(gauge, "model_version", "Version of the model")
        self.loads = make(counter, "model_loads", "Versions loaded", "outcome")

    def text(self):
        """(bytes of all values, content type)."""
        values = prometheus.generate_latest(self._registry)
        return values, prometheus.CONTENT_TYPE_LATEST
