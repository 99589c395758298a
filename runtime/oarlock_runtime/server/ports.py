"""Takes the ports before anything is loaded, and names the one that is busy. Runs in the supervisor."""

import contextlib
import errno
import socket
from collections.abc import Iterator

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import Settings, env_names, flag_of

BACKLOG = 2048


def address_of(settings: Settings, name: str) -> str:
    """HOST:PORT of the port that setting `name` gives."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{host}:{getattr(settings, name)}"


def listen(settings: Settings, name: str, share: int = 1) -> list[socket.socket]:
    """`share` listening sockets on the port of setting `name`; the kernel spreads connections over them.

    SettingError when the address is unknown or the port is busy.
    """
    family, address = _resolved(settings, name)
    patience = settings.slow_reader_seconds
    with contextlib.ExitStack() as opened, _named(settings, name):
        if share > 1:
            _bound(family, address, False, patience).close()  # a port that others share with us would seem free
        sockets = []
        for _ in range(share):
            sockets.append(opened.enter_context(_bound(family, address, share > 1, patience)))
            sockets[-1].listen(BACKLOG)
        opened.pop_all()
    return sockets


def hold(settings: Settings, name: str) -> socket.socket:
    """A socket that keeps the port of setting `name` for processes of ours, which listen on it with SO_REUSEPORT.

    It takes no connections itself. SettingError as for `listen`.
    """
    family, address = _resolved(settings, name)
    with _named(settings, name):
        _bound(family, address, False, settings.slow_reader_seconds).close()
        holder = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            # Without SO_REUSEADDR: with it on both sides, a second server could bind what we only hold.
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(address)
        except OSError:
            holder.close()
            raise
    return holder


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens there. SettingError when `host` is no address of this machine."""
    settings = Settings(host=host, port=port)
    try:
        with _bound(*_resolved(settings, "port"), False, settings.slow_reader_seconds) as opened:
            opened.listen(1)
    except OSError:
        return False
    return True


def _resolved(settings: Settings, name: str) -> tuple[int, tuple[object, ...]]:
    """Family and address to bind."""
    port: int = getattr(settings, name)
    try:
        found = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise SettingError(f"--host={settings.host!r} is no address of this machine: {error.strerror}") from None
    return found[0][0], found[0][4]


@contextlib.contextmanager
def _named(settings: Settings, name: str) -> Iterator[None]:
    """Turns what goes wrong with the port into a SettingError that names it."""
    port: int = getattr(settings, name)
    try:
        yield
    except OSError as error:
        choice = f"; choose another with {flag_of(name)} or {env_names(name)[-1]}"
        if error.errno == errno.EADDRINUSE:
            raise SettingError(f"port {port} of {settings.host} ({flag_of(name)}) is in use{choice}") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingError(f"--host={settings.host!r} is no address of this machine") from None
        raise SettingError(f"can't listen on port {port} of {settings.host}: {error.strerror}{choice}") from None


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
