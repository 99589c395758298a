"""The operator's metrics, in Prometheus' text form on /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Fine around the tenth of a second that 99 of 100 rounds should stay below.
_SECONDS = (
    *(0.0025, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.045, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1),
    *(0.11, 0.12, 0.13, 0.14, 0.15, 0.175, 0.2, 0.25, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
_LONG = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


class Metrics:
    """All of them, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile = Histogram(
            "oarlock_operator_reconcile_seconds",
            "From observing a deployment to the last write of the round",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queueing = Histogram(
            "oarlock_operator_queue_seconds",
            "From the first event of a round until it was begun",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.errors = Counter(
            "oarlock_operator_reconcile_errors", "Rounds that failed and are tried again", registry=self.registry
        )
        self.requests = Counter(
            "oarlock_operator_api_requests",
            "Requests to the API server",
            ["verb", "resource", "code"],
            registry=self.registry,
        )
        self.restarts = Counter(
            "oarlock_operator_group_restarts",
            "Groups that were remade because a member was lost",
            ["namespace", "deployment"],
            registry=self.registry,
        )
        self.formation = Histogram(
            "oarlock_operator_group_formation_seconds",
            "From the beginning of an epoch until its group was ready",
            buckets=_LONG,
            registry=self.registry,
        )
        self.last_event = Gauge(
            "oarlock_operator_last_event_age_seconds",
            "Since anything was heard from the API server",
            registry=self.registry,
        )
        self.deployments = Gauge(
            "oarlock_operator_deployments", "ModelDeployments that are looked after", registry=self.registry
        )
        self.leader = Gauge(
            "oarlock_operator_leader", "1 while this process holds the lease and writes", registry=self.registry
        )
