"""The counters and histograms of one server process: outcomes; time to first token, per token, in all, in the queue."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from oarlock_runtime.server.metrics import Family

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SLOW = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class ServerMetrics:
    """Kept on the process's own registry, so that several fit into one process in tests."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "oarlock_requests",
            "API calls by endpoint and outcome: an HTTP status, client_gone or slow_reader.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self._finished = Counter(
            "oarlock_choices_finished", "Answers by finish reason.", ["reason"], registry=self._registry
        )
        self._open = Gauge("oarlock_calls_open", "API calls being served.", registry=self._registry)
        self._first = self._histogram("time_to_first_token", "Time from a streamed call's arrival to its first token.")
        self._token = self._histogram("time_per_output_token", "Mean time between a streamed call's tokens.")
        self._queue = self._histogram("queue", "Time in the engine's queue, up to the first step.")
        self._total = self._histogram("request", "Time from a call's arrival to its last token.", _SLOW)
        self._output = Histogram(
            "oarlock_request_output_tokens",
            "Tokens generated for a call.",
            buckets=(1, 4, 16, 64, 256, 1024, 4096, 16384),
            registry=self._registry,
        )

    def _histogram(self, name: str, help: str, buckets: tuple[float, ...] = _FAST) -> Histogram:
        return Histogram(f"oarlock_{name}_seconds", help, buckets=buckets, registry=self._registry)

    def count(self, endpoint: str, outcome: str) -> None:
        """An API call ended."""
        self._requests.labels(endpoint, outcome).inc()

    def first_token(self, seconds: float) -> None:
        """The first token of a streamed call is there."""
        self._first.observe(seconds)

    def token_time(self, first: float, last: float, tokens: int) -> None:
        """A streamed answer whose longest choice has `tokens` tokens went from `first` to `last` (seconds)."""
        if tokens > 1:
            self._token.observe((last - first) / (tokens - 1))

    def finished(self, reasons: list[str], tokens: int, seconds: float, queue_seconds: float) -> None:
        """A call was answered in full."""
        self._queue.observe(queue_seconds)
        for reason in reasons:
            self._finished.labels(reason).inc()
        self._total.observe(seconds)
        self._output.observe(tokens)

    def families(self, open_calls: int) -> list[Family]:
        """All of it as data, for the supervisor's page."""
        self._open.set(open_calls)
        return [
            {
                "name": metric.name,
                "kind": metric.type,
                "help": metric.documentation,
                "samples": [
                    (sample.name, dict(sample.labels), sample.value)
                    for sample in metric.samples
                    if not sample.name.endswith("_created")
                ],
            }
            for metric in self._registry.collect()
        ]
