"""etcd and kube-apiserver: all that tests of the controller need, and the heart of the whole cluster. Up in 3 s."""

import os
import shutil
import socket
import ssl
import urllib.request
from pathlib import Path

from cluster.pki import Pki
from cluster.processes import ClusterError, Processes, wait_for
from cluster.versions import bin_dir, missing

SERVICES = "10.96.0.0/16"
ADMIN = ("admin", "admin", "system:masters")


class ControlPlane:
    """One API server with its store, everything under `folder`. `port` 0 takes free ports (for tests side by side)."""

    def __init__(self, folder: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.folder = folder
        self.processes = Processes(folder)
        self.address = address
        self.port = port or free_port()
        self.etcd_port = free_port()
        self.peer_port = free_port()
        self.url = f"https://{address}:{self.port}"
        self.pki = Pki(folder / "pki", self.url)

    @property
    def kubeconfig(self) -> Path:
        """For a user who may do everything."""
        return self.pki.kubeconfig("admin")

    def start(self, users: tuple[tuple[str, str, str], ...] = (ADMIN,), seconds: float = 60) -> None:
        """Starts both and waits until the API server is ready."""
        if lacking := missing(("etcd", "kube-apiserver")):
            raise ClusterError(f"{', '.join(lacking)}: not built; run make cluster-build (once, about 10 minutes)")
        if shutil.which("openssl") is None:
            raise ClusterError("openssl is not installed")
        names = {f"IP:{self.address}", "IP:127.0.0.1", "IP:10.96.0.1"}
        self.pki.make([*sorted(names), "DNS:kubernetes", "DNS:kubernetes.default.svc"], users)
        self.start_etcd()
        self.start_api_server()
        self.wait(seconds)

    def start_etcd(self) -> None:
        client, peer = f"http://127.0.0.1:{self.etcd_port}", f"http://127.0.0.1:{self.peer_port}"
        self.processes.start(
            "etcd",
            [
                bin_dir() / "etcd", "--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level=warn",
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", f"default={peer}",
            ],
        )  # fmt: skip

    def start_api_server(self) -> None:
        pki = self.pki.folder
        self.processes.start(
            "kube-apiserver",
            [
                bin_dir() / "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{self.etcd_port}",
                "--service-cluster-ip-range", SERVICES, "--advertise-address", self._advertised(),
                "--bind-address", self.address, "--secure-port", str(self.port),
                "--tls-cert-file", pki / "api.crt", "--tls-private-key-file", pki / "api.key",
                "--token-auth-file", pki / "tokens.csv", "--authorization-mode", "Node,RBAC", "--allow-privileged",
                "--service-account-issuer", "https://kubernetes.default.svc",
                "--service-account-key-file", pki / "sa.pub", "--service-account-signing-key-file", pki / "sa.key",
                "--client-ca-file", pki / "ca.crt", "--kubelet-preferred-address-types", "InternalIP",
                "--kubelet-client-certificate", pki / "kubelet-client.crt",
                "--kubelet-client-key", pki / "kubelet-client.key",
            ],
        )  # fmt: skip

    def wait(self, seconds: float = 60) -> None:
        """Returns when the API server says it is ready."""
        trust = ssl.create_default_context(cafile=str(self.pki.ca))
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": "Bearer admin-token"})
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
        )

        def ready() -> bool:
            try:
                with direct.open(request, timeout=2):
                    return True
            except OSError:
                return False

        wait_for("the API server is ready", ready, seconds, lambda: self.processes.tail("kube-apiserver"))

    def stop(self) -> None:
        """Ends both and removes what they stored."""
        self.processes.stop()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def _advertised(self) -> str:
        # The API server refuses a loopback address here. Without nodes nothing calls it; any other address will do.
        return "192.0.2.1" if self.address.startswith("127.") else self.address


def free_port() -> int:
    """A TCP port that is free now on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(kubeconfig: Path) -> dict[str, str]:
    """The environment for tools that read KUBECONFIG."""
    return {**os.environ, "KUBECONFIG": str(kubeconfig), "PATH": f"{bin_dir()}:{os.environ.get('PATH', '')}"}
