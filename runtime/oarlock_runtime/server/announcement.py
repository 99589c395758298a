"""What the log says once a server is ready: where it is reached, and what it holds. Pure; used by the supervisor."""

from collections.abc import Mapping
from typing import Any

from oarlock_runtime.server.place import Place
from oarlock_runtime.server.ports import address_of
from oarlock_runtime.settings import Settings


def ready_lines(settings: Settings, place: Place, facts: Mapping[str, Any], seconds: float) -> list[str]:
    """`facts`: what this host's first rank told of itself; `seconds`: from the start until now."""
    if place.node > 0:
        ranks = ", ".join(map(str, place.local_ranks))
        leader = place.addresses[0]
        return [f"Oarlock is ready: rank {ranks} of {place.world}; {leader} answers clients, in {seconds:.1f} s"]
    addresses = [f"http://{address_of(settings, 'port')}/v1"] if settings.port else []
    addresses += [f"grpc://{address_of(settings, 'grpc_port')}"] if settings.grpc_port else []
    return [
        f"weights {facts['weight_bytes'] / 1e6:.0f} MB, KV cache {facts['kv_bytes'] / 1e6:.0f} MB "
        f"({facts['blocks']} blocks of 64 tokens), context {facts['max_context']} tokens",
        f"Oarlock is ready: {' and '.join(addresses)} (model {settings.model_name}) in {seconds:.1f} s",
    ]
