"""Takes the ports before anything is loaded, and names the one that is busy. Runs in the supervisor."""

import errno
import socket

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import Settings, env_names, flag_of

BACKLOG = 2048


def listen(settings: Settings, name: str, share: int = 1) -> list[socket.socket]:
    """`share` listening sockets on the port of setting `name`; the kernel spreads connections over them.

    SettingError when the address is unknown or the port is busy.
    """
    port: int = getattr(settings, name)
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SettingError(f"--host={settings.host!r} is no address of this machine: {error.strerror}") from None
    sockets = []
    try:
        if share > 1:
            _bound(
                family, address, False, settings.slow_reader_seconds
            ).close()  # a port that others share with us would seem free
        for _ in range(share):
            sockets.append(_bound(family, address, share > 1, settings.slow_reader_seconds))
            sockets[-1].listen(BACKLOG)
    except OSError as error:
        for opened in sockets:
            opened.close()
        choice = f"; choose another with {flag_of(name)} or {env_names(name)[-1]}"
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {settings.host} ({flag_of(name)}) is in use{choice}") from None
        raise SettingError(f"can't listen on port {port} of {settings.host}: {error.strerror}{choice}") from None
    return sockets


def _bound(family: int, address: tuple[object, ...], shared: bool, patience: float) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio asks for the protocol
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Connections inherit these: no delay, and the kernel gives up on peers that are gone or take nothing.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience * 1000))
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened
