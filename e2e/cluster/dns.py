"""Cluster DNS: CoreDNS runs on the machine itself, behind the Service address that kubelets give to pods."""

from pathlib import Path

from cluster.processes import Processes
from cluster.versions import bin_dir

ADDRESS = "10.96.0.10"


def start(folder: Path, processes: Processes, host: str, kubeconfig: Path) -> None:
    """Starts CoreDNS; `objects` make its Service."""
    corefile = folder / "Corefile"
    corefile.write_text(
        f".:53 {{\n  bind {host}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n"
        f"    kubeconfig {kubeconfig}\n    pods disabled\n    ttl 1\n  }}\n}}\n"
    )
    processes.start("coredns", [bin_dir() / "coredns", "-conf", corefile])


def objects(host: str) -> str:
    """The Service and its endpoint, as YAML."""
    ports = "[{name: udp, port: 53, protocol: UDP}, {name: tcp, port: 53, protocol: TCP}]"
    return f"""apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system}}
spec:
  clusterIP: {ADDRESS}
  ports: {ports}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: kube-dns
  namespace: kube-system
  labels: {{kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: {ports}
endpoints: [{{addresses: ["{host}"]}}]
"""
