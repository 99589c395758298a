"""The test cluster's dealings with cgroups, of both versions, on folders that stand for them."""

from pathlib import Path

import pytest

from cluster import nodes, processes
from cluster.control_plane import ControlPlane
from cluster.nodes import Node
from cluster.processes import ClusterError, Processes, wait_for

CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "cgroup"
    found.mkdir()
    monkeypatch.setattr(nodes, "CGROUPS", found)
    return found


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(1, tmp_path, Processes(tmp_path), ControlPlane(tmp_path))


def test_one_hierarchy(groups: Path, node: Node) -> None:
    for group in (groups, groups / "oark"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("cpu memory\n")
    assert nodes.unified()
    node._make_cgroups()
    assert (groups / "oark" / "n1").is_dir()
    for group in (groups, groups / "oark"):  # controllers are handed down, from the root on
        assert (group / "cgroup.subtree_control").read_text() == "+memory"


def test_a_hierarchy_for_each_controller(groups: Path, node: Node) -> None:
    for controller in CONTROLLERS:
        (groups / controller).mkdir()
    for file, text in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (groups / "cpuset" / file).write_text(text)
    assert not nodes.unified()
    node._make_cgroups()
    assert all((groups / controller / "oark" / "n1").is_dir() for controller in CONTROLLERS)
    assert (groups / "cpuset" / "oark" / "n1" / "cpuset.cpus").read_text() == "0-1\n"
    assert not (groups / "blkio").exists()


@pytest.mark.parametrize("root", ["oark", "cpu/oark"], ids=["one hierarchy", "one for each controller"])
def test_members_are_found_and_groups_removed(groups: Path, root: str) -> None:
    inner = groups / root / "n1" / "kubepods"
    inner.mkdir(parents=True)
    procs = inner / "cgroup.procs"
    procs.write_text("4000001\n4000002\n")
    assert {4000001, 4000002} <= set(nodes._members())
    procs.unlink()
    for group in (inner, inner.parent, groups / root):
        nodes._remove_group(group)
    assert not (groups / root).exists()


def test_patience_multiplies_time_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0.001)
    with pytest.raises(ClusterError, match=r"it is there not within 0\.06 s"):
        wait_for("it is there", lambda: False, 60)
