"""The nodes: each a network namespace with its own containerd, kubelet, kube-proxy and pod network.

Pods of different nodes reach each other by routes, as on machines of their own. No bridge is used inside a node:
without br_netfilter an answer between two pods of one bridge would miss the Service's address translation.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

from cluster.control_plane import ControlPlane
from cluster.pause import PAUSE
from cluster.processes import ClusterError, Processes, run, start_time, wait_for
from cluster.versions import bin_dir

BRIDGE = "oark0"
HOST = "10.240.0.1"

CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS_V1 = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd")


class Node:
    """Node number 1, 2, …; its files are below `folder`, its sockets below /run."""

    def __init__(self, number: int, folder: Path, processes: Processes, plane: ControlPlane) -> None:
        self.number = number
        self.name = f"n{number}"
        self.namespace = f"oark-n{number}"
        self.address = f"10.240.0.1{number}"
        self.pods = f"10.244.{number}.0/24"
        self.folder = folder / self.name
        self.run = Path(f"/run/{self.namespace}")
        self.socket = self.run / "containerd.sock"
        self._processes = processes
        self._plane = plane

    # The network

    def connect(self, others: "list[Node]") -> None:
        """Makes the namespace and its link to the bridge; routes to the pods of the other nodes."""
        link = f"oark-v{self.number}"
        run("ip", "netns", "add", self.namespace)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        run("ip", "link", "set", link, "master", BRIDGE, "up")
        inside = ("ip", "-n", self.namespace)
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "addr", "add", f"{self.address}/24", "dev", "eth0")
        run(*inside, "link", "set", "eth0", "up")
        run(*inside, "route", "add", "default", "via", HOST)
        run("ip", "route", "add", self.pods, "via", self.address)
        for other in others:
            run(*inside, "route", "add", other.pods, "via", other.address)
        run(*self.inside(), "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def inside(self) -> tuple[str, ...]:
        """Prefix of a command that runs in the node's network. `ip netns exec` would hide the cgroups."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}")

    # The processes

    def start_containerd(self, images: list[Path]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_cgroups()
        (self.folder / "containerd.toml").write_text(self._containerd())
        conf = self.folder / "cni"
        conf.mkdir(exist_ok=True)
        (conf / "10-pods.conflist").write_text(json.dumps(self._pod_network()))
        name = f"containerd-{self.name}"
        command: list[str | Path] = [*self.inside(), bin_dir() / "containerd", "-c", self.folder / "containerd.toml"]
        self._processes.start(name, command, path=bin_dir())
        wait_for(f"{name} answers", self._answers, 30, lambda: self._processes.tail(name))
        for image in images:
            self.load(image)

    def _answers(self) -> bool:
        try:
            self.ctr("version")
        except ClusterError:
            return False
        return True

    def ctr(self, *arguments: str, seconds: float = 60) -> str:
        """containerd's own client on this node."""
        return run(bin_dir() / "ctr", "-a", self.socket, "-n", "k8s.io", *arguments, seconds=seconds)

    def load(self, image: Path) -> None:
        """Takes an image from an OCI or Docker archive."""
        self.ctr("images", "import", str(image), seconds=300)

    def start_kubelet(self) -> None:
        config = self.folder / "kubelet.yaml"
        config.write_text(self._kubelet())
        state = self.folder / "kubelet"
        self._processes.start(
            f"kubelet-{self.name}",
            [
                *self.inside(), bin_dir() / "kubelet", "--config", config, "--hostname-override", self.name,
                "--kubeconfig", self._plane.pki.kubeconfig(self.name), "--root-dir", state,
                "--cert-dir", state / "pki", "--node-ip", self.address,
            ],
            path=bin_dir(),
        )  # fmt: skip
        self._processes.start(
            f"kube-proxy-{self.name}",
            [
                *self.inside(), bin_dir() / "kube-proxy", "--kubeconfig", self._plane.pki.kubeconfig("proxy"),
                "--hostname-override", self.name, "--proxy-mode", "iptables", "--cluster-cidr", "10.244.0.0/16",
                "--conntrack-max-per-core", "0", "--oom-score-adj", "0",
            ],
        )  # fmt: skip

    # What they are told

    def _containerd(self) -> str:
        return f"""version = 3
root = "{self.folder}/containerd"
state = "{self.run}"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.cri.v1.images"]
  use_local_image_pull = true
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{bin_dir()}"]
    conf_dir = "{self.folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
"""

    def _pod_network(self) -> dict[str, object]:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": self.pods}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.folder / "ipam"),
        }
        plugins = [
            {"type": "ptp", "ipMasq": False, "ipam": ipam},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        return {"cniVersion": "1.0.0", "name": "pods", "plugins": plugins}

    def _kubelet(self) -> str:
        # A folder of logs for each node: a kubelet removes those of pods that it doesn't know.
        return f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://{self.socket}
podLogsDir: {self.folder}/logs
cgroupDriver: cgroupfs
cgroupRoot: /oark/{self.name}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: false}}
  x509: {{clientCAFile: {self._plane.pki.ca}}}
authorization: {{mode: AlwaysAllow}}
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
"""

    # cgroups

    def _make_cgroups(self) -> None:
        """The node's own group below /oark; on v1 one in each hierarchy."""
        if unified():
            group = CGROUPS / "oark" / self.name
            group.mkdir(parents=True, exist_ok=True)
            for parent in (CGROUPS, CGROUPS / "oark"):
                for controller in (parent / "cgroup.controllers").read_text().split():
                    try:
                        (parent / "cgroup.subtree_control").write_text(f"+{controller}")
                    except OSError:
                        continue  # the kubelet names those it really lacks
            return
        for controller in _CONTROLLERS_V1:
            if (CGROUPS / controller).is_dir():
                (CGROUPS / controller / "oark" / self.name).mkdir(parents=True, exist_ok=True)
        for group in (CGROUPS / "cpuset/oark", CGROUPS / "cpuset/oark" / self.name):
            for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group
                (group / file).write_text((CGROUPS / "cpuset" / file).read_text())


def unified() -> bool:
    """Whether the machine has cgroups v2."""
    return (CGROUPS / "cgroup.controllers").exists()


def clean(folder: Path) -> None:
    """Takes away whatever a cluster in `folder` left: shims and containers, mounts, namespaces, links, cgroups."""
    _end_containers()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith((f"{folder}/", "/run/oark-n")):
            run("umount", "-l", mount, check=False)
    for line in run("ip", "netns", "list", check=False).splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.startswith(("oark-n", "cni-")):
            run("ip", "netns", "del", name, check=False)
    run("ip", "link", "del", BRIDGE, check=False)
    for path in Path("/run").glob("oark-n*"):
        shutil.rmtree(path, ignore_errors=True)
    for root in [CGROUPS / "oark", *CGROUPS.glob("*/oark")]:
        for group in sorted(root.rglob("*"), reverse=True):
            if group.is_dir():
                _remove_group(group)
        _remove_group(root)


def _remove_group(group: Path) -> None:
    try:
        group.rmdir()
    except OSError:
        return


def _end_containers() -> None:
    """Ends every process in our cgroups, and the shims that stand over them."""
    for _ in range(50):
        pids = _members()
        if not pids:
            return
        for pid in pids:
            _kill(pid)
        time.sleep(0.1)


def _members() -> list[int]:
    found = set()
    for root in [CGROUPS / "oark", *CGROUPS.glob("*/oark")]:
        for file in root.rglob("cgroup.procs"):
            try:
                found |= {int(line) for line in file.read_text().split()}
            except OSError:
                continue
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and start_time(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"containerd-shim-runc-v2") and any(b"/run/oark-n" in word for word in words):
                found.add(int(entry.name))
    return sorted(found)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
