"""Every name that the API, rendered objects and the controller share: group, labels, annotations, ports, finalizer."""

GROUP = "serving.oarlock.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelDeployment"
PLURAL = "modeldeployments"

FIELD_MANAGER = "oarlock-operator"
FINALIZER = f"{GROUP}/drain"

# In what the chart's admission policy answers to a write of an operator that doesn't hold the lease.
NOT_HOLDER = "does not hold the operator's lease"

# Labels of everything that belongs to a deployment, and of pods.
DEPLOYMENT = f"{GROUP}/deployment"
GROUP_INDEX = f"{GROUP}/group"
EPOCH = f"{GROUP}/epoch"
RANK = f"{GROUP}/rank"
REVISION = f"{GROUP}/revision"

# Annotations that make the roster of a group: written on all its members at once, when each has an address.
POD_IPS = f"{GROUP}/pod-ips"
POD_0_IP = f"{GROUP}/pod-0-ip"
ROSTER_UIDS = f"{GROUP}/pod-uids"

# Annotation a user changes on the ModelDeployment to have every group remade, one after the other.
RESTART = f"{GROUP}/restart"

# The name that Kubernetes and we give to each port; PaddleNLP's variable and default.
PORTS = (
    ("http", "SERVICE_HTTP_PORT", 9965),
    ("grpc", "SERVICE_GRPC_PORT", 8811),
    ("metrics", "METRICS_HTTP_PORT", 8722),
    ("health", "HEALTH_HTTP_PORT", 8110),
    ("inter-proc", "INTER_PROC_PORT", 8813),
)

DOWNLOAD_CONTAINER = "download"
ROSTER_CONTAINER = "roster"
SERVER_CONTAINER = "server"


def service_ports() -> tuple[tuple[str, str, int], ...]:
    """Those of PORTS that clients may reach."""
    return tuple(port for port in PORTS if port[0] != "inter-proc")


def leader_service(deployment: str) -> str:
    """The Service that clients call: ready leaders only."""
    return deployment


def members_service(deployment: str) -> str:
    """The headless Service that gives every member a name, ready or not."""
    return f"{deployment}-members"


def cache_claim(deployment: str) -> str:
    """The claim the operator makes for a shared model cache."""
    return f"{deployment}-model"


def group_policy(deployment: str, group: int) -> str:
    """The NetworkPolicy that lets a group's members reach each other."""
    return f"{deployment}-group-{group}"


def hostname(deployment: str, group: int, rank: int) -> str:
    """Stable over epochs, so that logs and names of peers don't change when a group is remade."""
    return f"{deployment}-{group}-{rank}"


def pod_name(deployment: str, group: int, epoch: int, rank: int) -> str:
    """Unlike the hostname it changes with the epoch: a pod stuck on a dead node keeps nobody from taking its place."""
    return f"{deployment}-{group}-e{epoch}-{rank}"


def leader_selector(deployment: str) -> dict[str, str]:
    return {DEPLOYMENT: deployment, RANK: "0"}
