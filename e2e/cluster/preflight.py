"""Whether this machine can run the cluster: tries, in small and in seconds, each kind of thing that it does.

Needs none of the cluster's binaries, and leaves nothing behind.
"""

import json
import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cluster.nodes import CGROUPS, unified
from cluster.processes import ClusterError, run
from cluster.versions import KUBERNETES, bin_dir, missing, module_proxy

PROGRAMS = ("runc", "iptables", "conntrack", "ip", "nsenter", "openssl", "mount", "umount", "sysctl")
_NAME = "oark-check"
_SECONDS = 15
_BUILD_BYTES = 12 << 30
_RUN_BYTES = 5 << 30
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def lacking_programs() -> list[str]:
    """Programs that aren't installed, with the packages that have them."""
    return [f"the program {name} (Debian: {_package(name)})" for name in PROGRAMS if shutil.which(name) is None]


def lacking(folder: Path) -> list[str]:
    """Everything that keeps the cluster from running with its files in `folder`; empty when nothing does."""
    if os.geteuid() != 0:
        return ["root (network namespaces, mounts and cgroups are made)"]
    if found := lacking_programs():
        return found
    folder.mkdir(parents=True, exist_ok=True)
    trials: tuple[tuple[str, Callable[[Path], None]], ...] = (
        ("network namespaces", _network),
        ("overlay mounts", _mount),
        ("cgroups of its own", _cgroup),
        ("containers", _container),
        ("room on the disk", _room),
        ("the way to the Go modules", _modules),
    )
    with tempfile.TemporaryDirectory(prefix="check-", dir=folder) as name:
        for what, trial in trials:
            try:
                trial(Path(name))
            except (ClusterError, OSError) as error:
                found.append(f"{what} ({_short(str(error))})")
    return found


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) < 200 else f"{words[:50]} … {words[-140:]}"


def _network(_: Path) -> None:
    try:
        run("ip", "netns", "add", _NAME, seconds=_SECONDS)
        run("ip", "link", "add", "oark-c0", "type", "veth", "peer", "name", "eth0", "netns", _NAME, seconds=_SECONDS)
        run("ip", "link", "add", "oark-c1", "type", "bridge", seconds=_SECONDS)
        run("ip", "link", "set", "oark-c0", "master", "oark-c1", "up", seconds=_SECONDS)
        inside = ("nsenter", f"--net=/run/netns/{_NAME}")
        run(*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1", seconds=_SECONDS)
        # What kube-proxy's rules are made of.
        rule = ("-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-m", "comment", "--comment", "check")
        chance = ("-m", "statistic", "--mode", "random", "--probability", "0.5", "-j", "MASQUERADE")
        run(*inside, "iptables", "-w", "-t", "nat", "-N", "CHECK", seconds=_SECONDS)
        run(*inside, "iptables", "-w", *rule, "-j", "CHECK", seconds=_SECONDS)
        run(*inside, "iptables", "-w", "-t", "nat", "-A", "POSTROUTING", *chance, seconds=_SECONDS)
    finally:
        run("ip", "link", "del", "oark-c1", check=False)
        run("ip", "link", "del", "oark-c0", check=False)
        run("ip", "netns", "del", _NAME, check=False)


def _mount(folder: Path) -> None:
    parts = {name: folder / name for name in ("lower", "upper", "work", "merged")}
    for part in parts.values():
        part.mkdir()
    options = ",".join(f"{name}dir={parts[name]}" for name in ("lower", "upper", "work"))
    run("mount", "-t", "overlay", "overlay", "-o", options, parts["merged"], seconds=_SECONDS)
    run("umount", parts["merged"], seconds=_SECONDS)


def _cgroup(_: Path) -> None:
    """A process in a group of ours, below each controller."""
    if unified():
        group = CGROUPS / _NAME
        group.mkdir(exist_ok=True)
        try:
            for controller in _CONTROLLERS:
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
            _enter(group)
        finally:
            group.rmdir()
        return
    for controller in _CONTROLLERS:
        group = CGROUPS / controller / _NAME
        group.mkdir(exist_ok=True)
        try:
            if controller == "cpuset":
                for file in ("cpuset.cpus", "cpuset.mems"):  # empty in a new group
                    (group / file).write_text((CGROUPS / controller / file).read_text())
            _enter(group)
        finally:
            group.rmdir()


def _enter(group: Path) -> None:
    run("sh", "-c", f"echo 0 >{group}/cgroup.procs", seconds=_SECONDS)


def _container(folder: Path) -> None:
    """One real container, of this machine's own programs."""
    bundle = folder / "bundle"
    (bundle / "rootfs").mkdir(parents=True)
    run("runc", "spec", "--bundle", bundle, seconds=_SECONDS)
    file = bundle / "config.json"
    spec = json.loads(file.read_text())
    spec["process"] |= {"args": ["/bin/true"], "terminal": False}
    spec["process"].pop("rlimits", None)
    spec["root"]["readonly"] = False  # for the folders that programs are mounted on
    for name in ("/bin", "/lib", "/lib64", "/usr"):
        if Path(name).exists():
            options = ["rbind", "ro"]
            spec["mounts"].append({"destination": name, "type": "bind", "source": name, "options": options})
    spec["linux"]["cgroupsPath"] = f"/{_NAME}/container"
    file.write_text(json.dumps(spec))
    try:
        run("runc", "--root", folder / "runc", "run", "--bundle", bundle, _NAME, seconds=2 * _SECONDS)
    finally:
        run("runc", "--root", folder / "runc", "delete", "--force", _NAME, check=False)
        for root in (CGROUPS, *CGROUPS.glob("*/")):
            if (root / _NAME).is_dir():
                subprocess.run(["rmdir", root / _NAME], capture_output=True, timeout=_SECONDS)


def _room(folder: Path) -> None:
    building = bool(missing())
    cache = bin_dir()
    while not cache.exists():
        cache = cache.parent
    for place, wanted in ((folder, _RUN_BYTES), (cache, _BUILD_BYTES if building else 0)):
        free = shutil.disk_usage(place).free
        if free < wanted:
            raise ClusterError(f"{free >> 30} GiB are free at {place}, {wanted >> 30} are needed")


def _modules(_: Path) -> None:
    """The binaries are built from Go modules, unless they have been."""
    if not missing():
        return
    url = f"{module_proxy()}/k8s.io/kubernetes/@v/v1.{KUBERNETES}.info"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            answer.read()
    except OSError as error:
        raise ClusterError(f"{url}: {error}") from None


def _package(program: str) -> str:
    packages = {"ip": "iproute2", "nsenter": "util-linux", "mount": "mount", "umount": "mount", "sysctl": "procps"}
    return packages.get(program, program)
