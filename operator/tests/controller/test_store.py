"""Versions, deletions and ownership in the store."""

from typing import Any

from oarlock_operator.api import names
from oarlock_operator.controller.store import Store


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
    assert store.put(pod(10)) is None  # newer, with nothing in it that is read
    assert store.put(pod(9, annotations={"a": "b"})) is None
    assert store.put(pod(11, annotations={"a": "b"})) == ("n", "llm")


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
