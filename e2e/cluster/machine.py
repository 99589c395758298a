"""The whole cluster: checks the machine, starts everything in order, and takes everything away again."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster import dns
from cluster.control_plane import ADMIN, ControlPlane, environment
from cluster.nodes import BRIDGE, HOST, Node, clean
from cluster.pause import PAUSE_ARCHIVE
from cluster.preflight import lacking_programs
from cluster.processes import ClusterError, Processes, run, wait_for
from cluster.versions import bin_dir, missing

_SYSTEM_USERS = tuple((name, name, "system:masters") for name in ("kcm", "scheduler", "proxy", "dns"))


def default_folder() -> Path:
    """Where a cluster keeps everything. CLUSTER_DIR names another place."""
    return Path(os.environ.get("CLUSTER_DIR") or "/var/tmp/oarlock-cluster")


class Cluster:
    """One cluster a machine: the names of its links and namespaces are fixed."""

    def __init__(self, folder: Path, nodes: int = 2) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.processes = Processes(folder)
        self.plane = ControlPlane(folder, HOST, 6443)
        self.nodes = [Node(number, folder, self.processes, self.plane) for number in range(1, nodes + 1)]

    def up(self, images: list[Path]) -> float:
        """Starts it; returns the seconds that took. A cluster that was left by a crash is taken away first."""
        _check_machine()
        with self._locked():
            self._down()
            begin = time.monotonic()
            try:
                self._start(images)
            except BaseException:
                self._down()
                raise
            return time.monotonic() - begin

    def down(self) -> None:
        """Leaves no process, mount, link, namespace or cgroup; logs stay for reading."""
        with self._locked():
            self._down()

    def kubectl(self, *arguments: str, seconds: float = 60, given: str | None = None) -> str:
        return run(
            bin_dir() / "kubectl", "--kubeconfig", self.plane.kubeconfig, *arguments, seconds=seconds, given=given
        )

    def environment(self) -> dict[str, str]:
        """For tools that read KUBECONFIG."""
        return environment(self.plane.kubeconfig)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ClusterError(f"another command works on the cluster in {self.folder}") from None
            yield

    def _start(self, images: list[Path]) -> None:
        run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "addr", "add", f"{HOST}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for node in self.nodes:
            run("ip", "netns", "del", node.namespace, check=False)
        users = tuple((node.name, f"system:node:{node.name}", "system:nodes") for node in self.nodes)
        self.plane.start((ADMIN, *_SYSTEM_USERS, *users))
        pki = self.plane.pki
        self.processes.start(
            "kube-controller-manager",
            [
                bin_dir() / "kube-controller-manager", "--kubeconfig", pki.kubeconfig("kcm"), "--leader-elect=false",
                "--service-account-private-key-file", pki.folder / "sa.key", "--root-ca-file", pki.ca,
            ],
        )  # fmt: skip
        self.processes.start(
            "kube-scheduler",
            [bin_dir() / "kube-scheduler", "--kubeconfig", pki.kubeconfig("scheduler"), "--leader-elect=false"],
        )
        for node in self.nodes:
            node.connect([])
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    run("ip", "-n", node.namespace, "route", "add", other.pods, "via", other.address)
        for node in self.nodes:
            node.start_containerd([bin_dir() / PAUSE_ARCHIVE, *images])
            node.start_kubelet()
        dns.start(self.folder, self.processes, HOST, pki.kubeconfig("dns"))
        self.kubectl("apply", "-f", "-", given=dns.objects(HOST))
        wait_for("all nodes are ready", self._ready, 60, lambda: self.processes.tail("kubelet-n1"))

    def _ready(self) -> bool:
        jsonpath = '{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\\n"}{end}'
        try:
            states = self.kubectl("get", "nodes", "-o", f"jsonpath={jsonpath}").split()
        except ClusterError:
            return False
        return states == ["True"] * len(self.nodes)

    def _down(self) -> None:
        self.processes.stop()
        clean(self.folder)
        for name in ("etcd", *(node.name for node in self.nodes)):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _check_machine() -> None:
    """Raises ClusterError that names everything this machine lacks."""
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root (network namespaces and mounts are made)")
    lacking += lacking_programs()
    if absent := missing():
        lacking.append(f"the binaries {', '.join(absent)}: run make cluster-build")
    if lacking:
        raise ClusterError("this machine lacks " + "; ".join(lacking))
