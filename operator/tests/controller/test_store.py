"""Versions, deletions and ownership in the store; what a log line of a download tells."""

from typing import Any

import pytest

from oarlock_operator.api import names
from oarlock_operator.controller.store import Store
from oarlock_operator.decide.progress import progress_from
from oarlock_operator.decide.snapshot import Progress


def pod(version: int, uid: str = "u", **metadata: Any) -> dict[str, Any]:
    labels = {names.DEPLOYMENT: "llm"}
    return {
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "n", "uid": uid, "resourceVersion": str(version), "labels": labels}
        | metadata,
        "spec": {"nodeName": "n1", "volumes": ["big"], "initContainers": [{"name": "download", "image": "i"}]},
        "status": {"phase": "Running", "qosClass": "x"},
    }


def test_older_versions_are_not_taken() -> None:
    store = Store()
    assert store.put(pod(5)) == ("n", "llm")
    assert store.put(pod(5)) is None and store.put(pod(4)) is None
    assert store.put(pod(10)) == ("n", "llm")


def test_what_is_gone_does_not_come_back() -> None:
    store = Store()
    store.put(pod(5))
    assert store.drop(pod(6)) == ("n", "llm")
    assert store.put(pod(5)) is None and store.owned(("n", "llm")) == {}
    assert store.put(pod(3, uid="another")) == ("n", "llm")


def test_a_late_deletion_spares_the_successor() -> None:
    store = Store()
    store.put(pod(5, uid="new"))
    store.drop(pod(9, uid="old"))
    assert ("Pod", "p") in store.owned(("n", "llm"))


def test_only_what_is_read_is_kept() -> None:
    store = Store()
    store.put(pod(5, managedFields=["much"]))
    kept = store.owned(("n", "llm"))["Pod", "p"]
    assert kept["spec"] == {"nodeName": "n1", "initContainers": [{"name": "download"}]}
    assert kept["status"] == {"phase": "Running"} and "managedFields" not in kept["metadata"]


def test_strangers_are_ignored() -> None:
    assert Store().put(pod(5, labels={"app": "other"})) is None


@pytest.mark.parametrize(
    ("text", "progress"),
    [
        ("downloading m.gguf: 12.0 MiB of 96.0 MiB (12%), 2.0 MiB/s", Progress(12 << 20, 96 << 20, 2 << 20)),
        ("downloading m.gguf: 1.5 KiB", Progress(1536)),
        ("retrying m.gguf: 2.0 GiB of 4.0 GiB (50%) (no answer)\n", Progress(2 << 30, 4 << 30)),
        ("downloading a: 1 B of 2 B (50%)\n\nverifying a", Progress(1, 2)),
        ("", None),
        ("error: no such model", None),
    ],
)
def test_progress_lines(text: str, progress: Progress | None) -> None:
    assert progress_from(text) == progress
