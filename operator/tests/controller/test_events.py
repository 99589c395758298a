"""Events as they lie in a real API server."""

import asyncio
from datetime import UTC, datetime, timedelta

from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config
from operator_support.apiserver import Server
from operator_support.builders import body

from oarlock_operator.api.deployment import parse
from oarlock_operator.controller.client import Api
from oarlock_operator.controller.events import EventRecorder
from oarlock_operator.controller.metrics import Metrics
from oarlock_operator.decide.actions import Event

START = datetime(2026, 1, 1, tzinfo=UTC)
FAILED = Event("DownloadFailed", "no such host", "Warning")


def post(server: Server, namespace: str, *events: tuple[int, Event | None]) -> None:
    """Records events, each so many minutes after the start, as one operator; None: all so far are forgotten."""
    wanted = body()
    wanted["metadata"]["namespace"] = namespace

    async def story() -> None:
        configuration = kube.Configuration()
        await kube_config.load_kube_config(str(server.plane.kubeconfig), client_configuration=configuration)
        api = Api(kube.ApiClient(configuration), Metrics())
        recorder = EventRecorder(api)
        posting = asyncio.create_task(recorder.run())
        try:
            for minutes, event in events:
                if event is None:
                    for found in server.objects("Event", namespace):
                        server.delete("Event", namespace, found["metadata"]["name"])
                else:
                    recorder.record(parse(wanted), event, START + timedelta(minutes=minutes))
                    await recorder.finish()
        finally:
            posting.cancel()
            await api.close()

    asyncio.run(story())


def counts(server: Server, namespace: str) -> list[tuple[str, int, str]]:
    found = server.objects("Event", namespace)
    return sorted((event["message"], event["count"], event["lastTimestamp"]) for event in found)


def test_what_was_said_already_is_counted(server: Server, namespace: str) -> None:
    other = Event("DownloadFailed", "no such file", "Warning")
    post(server, namespace, (0, FAILED), (1, FAILED), (2, other), (5, FAILED))
    assert counts(server, namespace) == [
        ("no such file", 1, "2026-01-01T00:02:00Z"),
        ("no such host", 3, "2026-01-01T00:05:00Z"),
    ]


def test_after_long_it_is_said_anew(server: Server, namespace: str) -> None:
    post(server, namespace, (0, FAILED), (20, FAILED), (60, FAILED))
    assert counts(server, namespace) == [
        ("no such host", 1, "2026-01-01T01:00:00Z"),
        ("no such host", 2, "2026-01-01T00:20:00Z"),
    ]


def test_one_that_is_gone_is_made_again(server: Server, namespace: str) -> None:
    post(server, namespace, (0, FAILED), (1, None), (2, FAILED), (3, FAILED))
    assert [count for _, count, _ in counts(server, namespace)] == [2]
