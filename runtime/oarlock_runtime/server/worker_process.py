"""A rank of a split model other than rank 0: loads its part of the weights and carries out what rank 0 orders.

One thread follows; another waits for the supervisor's words. Rank 0 sends a beat every second when it has no work, so
that a rank which hears nothing for long knows that it is alone, and ends.
"""

import os
import threading
from typing import Any

from oarlock_runtime.errors import OarlockError
from oarlock_runtime.server.control import Control
from oarlock_runtime.server.model_load import context_of, join_ranks, load_model, open_model
from oarlock_runtime.server.place import peer_limit, place_of
from oarlock_runtime.server.process import run
from oarlock_runtime.settings import Settings


def main(control: Control, settings: Settings, first: dict[str, Any]) -> None:
    rank = int(first["rank"])
    place = place_of(settings)
    checkpoint = open_model(settings, place, rank)
    ranks = join_ranks(settings, checkpoint, place, rank, control)
    if ranks is None:
        raise OarlockError("a worker process is for a model that is split over ranks")
    executor = load_model(settings, checkpoint, context_of(settings, checkpoint.spec.max_context), control, ranks)
    told_to_stop = threading.Event()

    def listen() -> None:
        while (message := control.receive()) is not None and message["kind"] != "stop":
            pass
        told_to_stop.set()
        ranks.comm.abort("told to stop")

    threading.Thread(target=listen, daemon=True).start()
    control.send("ready", pid=os.getpid(), rank=rank, world=ranks.world, weight_bytes=executor.weight_bytes)
    try:
        # Rank 0 may take as long to get ready as it takes to load; from its first order on it is expected to be prompt.
        order = executor.follow()
        ranks.comm.set_time_limit(peer_limit(settings))
        while order != "stop":
            control.send("beat", stats={})
            order = executor.follow()
    except ConnectionError as error:
        if told_to_stop.is_set():
            return
        raise OarlockError(str(error)) from error
    control.send("left")


if __name__ == "__main__":
    run(main)
