"""The group of hosts that PaddleNLP's variables describe, and this host's place in it. Runs in start_server.

Every host gets the same POD_IPS, POD_0_IP, MP_NNODE and MP_NUM, and knows its own address.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from oarlock_runtime.errors import SettingError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Group:
    """`addresses` of all hosts, the master's first; `ranks` are those of all hosts together."""

    addresses: tuple[str, ...]
    host: str
    ranks: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """From an environment with its defaults. SettingError names the variable that is wrong."""
        nodes, ranks = int(environ["MP_NNODE"]), int(environ["MP_NUM"])
        if nodes == 1:
            return cls((LOOPBACK,), LOOPBACK, ranks)
        addresses = [one.strip() for one in environ.get("POD_IPS", "").split(",") if one.strip()]
        master = environ.get("POD_0_IP", "").strip()
        if len(addresses) != nodes or len(set(addresses)) != nodes:
            raise SettingError(
                f"POD_IPS={environ.get('POD_IPS', '')!r} must be the {nodes} addresses of MP_NNODE={nodes}"
            )
        if master not in addresses:
            raise SettingError(f"POD_0_IP={master!r} must be one of POD_IPS={','.join(addresses)}")
        host = environ.get("HOST_IP", "").strip() or _own_address()
        if host not in addresses:
            raise SettingError(f"this host's address {host!r} (HOST_IP) must be one of POD_IPS={','.join(addresses)}")
        return cls((master, *(one for one in addresses if one != master)), host, ranks)

    @property
    def master(self) -> bool:
        """Whether this host is the one that answers clients."""
        return self.host == self.addresses[0]

    def environment(self) -> dict[str, str]:
        """What the server's processes are told."""
        return {"POD_0_IP": self.addresses[0], "POD_IPS": ",".join(self.addresses), "HOST_IP": self.host}


def check_served(group: Group) -> None:
    """SettingError for a group that Oarlock does not serve: one rank on one host is what there is."""
    if group.ranks > 1 or len(group.addresses) > 1:
        raise SettingError(
            f"MP_NUM={group.ranks} with MP_NNODE={len(group.addresses)}: more than one rank is not supported yet; "
            "set MP_NUM=1 and MP_NNODE=1"
        )


def _own_address() -> str:
    """The address that this host's name stands for, as `hostname -i` tells it; "" when it stands for none."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return ""
