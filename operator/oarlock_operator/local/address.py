"""The addresses of pods on this machine: 127.1.0.2 and on, one for each, so that all have the same ports.

An address is taken by the name of a socket in the kernel, which goes with the process: other runners of this machine
see it, and one that is killed leaves nothing behind.
"""

import socket

from oarlock_operator.api import names

_MOST = 62500


class AddressError(OSError):
    """No address is left; the text says why."""


class Address:
    """`ip`, taken until `release`."""

    def __init__(self, ip: str, claim: socket.socket) -> None:
        self.ip = ip
        self._claim = claim

    def release(self) -> None:
        self._claim.close()


def take_address() -> Address:
    """The first that nobody has. AddressError when there is none."""
    busy = 0
    for number in range(1, _MOST):
        ip = f"127.1.{number // 250}.{number % 250 + 1}"
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0oarlock pod {ip}")
        except OSError:
            claim.close()
            continue
        taken = _taken_port(ip)
        if taken is None:
            return Address(ip, claim)
        claim.close()
        busy += 1
        if busy > 50:
            raise AddressError(f"port {taken} is taken on every address: a server listens on 0.0.0.0:{taken}; end it")
    raise AddressError("all loopback addresses are taken by pods of other runners")


def _taken_port(ip: str) -> int | None:
    """The first port of a pod on which somebody else listens."""
    for _, _, port in names.PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, port))
            except OSError:
                return port
    return None
