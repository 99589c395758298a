"""Where this host stands among those that serve one model: its node, its ranks, and where rank 0 is. Pure.

PaddleNLP's variables tell it: POD_IPS lists the hosts, the same everywhere, POD_0_IP is rank 0's, MP_NNODE counts the
hosts and MP_NUM the ranks. The supervisor asks, and starts what belongs here.
"""

from dataclasses import dataclass

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import Settings

_LOOPBACK = "127.0.0.1"
# Of heartbeat_seconds. The ranks find out first which of them is silent, then the supervisor acts.
_PEER_SHARE, _SILENCE_SHARE = 0.7, 0.8


@dataclass(frozen=True, slots=True)
class Place:
    """`addresses` of all nodes, rank 0's first; `node` is this host's index there."""

    addresses: tuple[str, ...]
    node: int
    world: int

    @property
    def local_ranks(self) -> range:
        """The ranks that run on this host."""
        each = self.world // len(self.addresses)
        return range(self.node * each, (self.node + 1) * each)

    @property
    def split(self) -> bool:
        return self.world > 1

    def name_of(self, rank: int) -> str:
        """What errors call a rank's process."""
        each = self.world // len(self.addresses)
        address = self.addresses[rank // each]
        return address if each == 1 else f"{address}, process {rank % each}"


def peer_limit(settings: Settings) -> float:
    """Seconds that a rank at work may keep the others waiting."""
    return settings.heartbeat_seconds * _PEER_SHARE


def silence_limit(settings: Settings) -> float:
    """Seconds that a rank's process may be silent before its supervisor ends it."""
    return settings.heartbeat_seconds * _SILENCE_SHARE


def place_of(settings: Settings) -> Place:
    """The place that the settings describe. SettingError names the variable that does not fit the others."""
    nodes, world = settings.nnodes, settings.ranks or settings.nnodes
    if world % nodes:
        raise SettingError(f"MP_NUM={world} is not a multiple of MP_NNODE={nodes}: each node runs as many ranks")
    if nodes == 1:
        return Place((settings.pod_0_ip or _LOOPBACK,), 0, world)
    listed = [address.strip() for address in settings.pod_ips.split(",") if address.strip()]
    if not listed:
        raise SettingError(f"POD_IPS is not set: with MP_NNODE={nodes} it lists the {nodes} hosts, the same on each")
    if len(listed) != nodes:
        raise SettingError(f"POD_IPS={settings.pod_ips!r} lists {len(listed)} hosts where MP_NNODE={nodes} are wanted")
    if len(set(listed)) != nodes:
        raise SettingError(f"POD_IPS={settings.pod_ips!r} lists a host twice")
    if not settings.pod_0_ip:
        raise SettingError(f"POD_0_IP is not set: it must be one of POD_IPS={settings.pod_ips}, the same on all hosts")
    if settings.pod_0_ip not in listed:
        raise SettingError(f"POD_0_IP={settings.pod_0_ip} is not one of POD_IPS={settings.pod_ips}")
    addresses = (settings.pod_0_ip, *(address for address in listed if address != settings.pod_0_ip))
    if settings.host_ip not in addresses:
        given = f"HOST_IP={settings.host_ip}" if settings.host_ip else "HOST_IP is not set: it"
        raise SettingError(f"{given} must be one of POD_IPS={settings.pod_ips}: this host's own address")
    return Place(addresses, addresses.index(settings.host_ip), world)
