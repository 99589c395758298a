"""The versions that the cluster is built from, and where its binaries lie: outside the checkout."""

import hashlib
import json
import os
from pathlib import Path

KUBERNETES = "35.4"  # 1.35.4; its staging modules are v0.35.4
KUBERNETES_COMMANDS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl",
)  # fmt: skip
ETCD = "v3.6.5"
CONTAINERD = "v2.2.0"
CONTAINERD_COMMANDS = ("containerd", "containerd-shim-runc-v2", "ctr")
# Modules without replace lines, which `go install` takes by version.
INSTALLED = {
    "coredns": "github.com/coredns/coredns@v1.13.1",
    "helm": "helm.sh/helm/v4/cmd/helm@v4.3.1",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok@v0.7.0",
    "ptp": "github.com/containernetworking/plugins/plugins/main/ptp@v1.9.0",
    "loopback": "github.com/containernetworking/plugins/plugins/main/loopback@v1.9.0",
    "host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local@v1.9.0",
    "portmap": "github.com/containernetworking/plugins/plugins/meta/portmap@v1.9.0",
}
GO = "1.26"  # the oldest that builds all of this: helm asks for it

BINARIES = (*KUBERNETES_COMMANDS, "etcd", *CONTAINERD_COMMANDS, *INSTALLED, "pause.tar")


def bin_dir() -> Path:
    """The folder of the binaries. CLUSTER_BIN names another one."""
    if given := os.environ.get("CLUSTER_BIN"):
        return Path(given)
    pins = json.dumps([KUBERNETES, ETCD, CONTAINERD, INSTALLED], sort_keys=True)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "oarlock-cluster" / f"1.{KUBERNETES}-{hashlib.sha256(pins.encode()).hexdigest()[:8]}" / "bin"


def module_proxy() -> str:
    """The address of the Go module proxy: the first of GOPROXY that is one."""
    named = os.environ.get("GOPROXY", "").replace("|", ",").split(",")
    return next((name.rstrip("/") for name in named if name.startswith("http")), "https://proxy.golang.org")


def missing(names: tuple[str, ...] = BINARIES) -> list[str]:
    """Those of the named binaries that aren't built."""
    return [name for name in names if not (bin_dir() / name).exists()]
