"""Helpers of the tests on a real cluster.

`pytest e2e/tests`, as root, after `make cluster-build` and images/build.py. KUBECONFIG chooses another cluster, whose
nodes have the images already; E2E_HOST is then this machine's address as pods see it. E2E_IMAGES is the folder of the
image archives, E2E_MODEL a GGUF file of SmolLM2-135M-Instruct, E2E_KEEP leaves the cluster up,
CLUSTER_PATIENCE multiplies the time limits.
"""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SYSTEM, NAMESPACE = "oarlock-system", "models"
