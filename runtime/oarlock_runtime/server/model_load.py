"""Opens and loads the model that the settings name. Runs in the engine process and in the workers of a split model."""

import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from oarlock_runtime import __version__
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor, usable_threads
from oarlock_runtime.engine.plan import BLOCK_TOKENS
from oarlock_runtime.engine.ranks import Ranks, open_comm, require_devices
from oarlock_runtime.errors import OarlockError
from oarlock_runtime.ipc.formation import FormationError, Member, excuse, form
from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.dummy import open_dummy
from oarlock_runtime.models.loading import LoadProgress
from oarlock_runtime.server.control import Control
from oarlock_runtime.server.paddle.block_plan import BlockPlan
from oarlock_runtime.server.place import Place
from oarlock_runtime.settings import Settings

_log = logging.getLogger("oarlock.engine")


def open_model(settings: Settings, place: Place, rank: int) -> Checkpoint:
    """The model as that rank needs it; of files that were cut for as many ranks, its own."""
    with _or_excused(settings, place, rank):
        if settings.load_format == "dummy":
            return open_dummy(settings.model)
        return open_checkpoint(settings.model, settings.paddle_packing, rank, place.world)


@contextlib.contextmanager
def _or_excused(settings: Settings, place: Place, rank: int) -> Iterator[None]:
    """Tells the other ranks of an error that keeps this one from coming, so that they need not wait for it."""
    try:
        yield
    except OarlockError as error:
        if place.split:
            _log.error("rank %d can't take part: %s", rank, error)
            with contextlib.suppress(
                FormationError
            ):  # somebody else listens there; the error at hand is the one to tell
                excuse(_member(settings, place, rank), str(error))
        raise


def _member(settings: Settings, place: Place, rank: int) -> Member:
    host = place.addresses[0]
    store = f"[{host}]:{settings.group_port}" if ":" in host else f"{host}:{settings.group_port}"
    return Member(rank, place.world, settings.group_epoch, place.name_of(rank), store)


def context_of(settings: Settings, longest: int) -> int:
    """Tokens of a sequence. What PaddleNLP's environment or export says is only a limit to the model's own."""
    source = settings.sources.get("max_context")
    if settings.max_context > longest and source in ("MAX_SEQ_LEN", "config.json"):
        _log.warning("%s: %d tokens are clamped to the model's %d", source, settings.max_context, longest)
        return longest
    return settings.max_context or longest


def join_ranks(settings: Settings, checkpoint: Checkpoint, place: Place, rank: int, control: Control) -> Ranks | None:
    """Meets the other ranks; None when there are none. Until the model is loaded, they may take `start_timeout`.

    FormationError, or OarlockError, when they do not come together; SettingError when this host has too few GPUs.
    """
    if not place.split:
        return None
    control.send("loading", what=f"waiting for the other ranks of {place.world}", share=0.0)
    begin = time.monotonic()
    with _or_excused(settings, place, rank):
        if settings.device == "cuda":
            require_devices(len(place.local_ranks), f"MP_NUM={place.world} over MP_NNODE={len(place.addresses)}")
        facts = _facts(settings, checkpoint)
        try:
            comm = open_comm(rank, place.world, settings.start_timeout)
        except RuntimeError as error:  # from the core
            raise OarlockError(str(error)) from error
    member = replace(_member(settings, place, rank), facts=facts, address=comm.address)
    roster = form(member, settings.formation_timeout)
    try:
        comm.connect(roster.addresses, roster.names)
    except (RuntimeError, ConnectionError) as error:  # from the core
        raise OarlockError(str(error)) from error
    _log.info("rank %d of %d: all are here after %.1f s", rank, place.world, time.monotonic() - begin)
    return Ranks(rank, place.world, comm, local=rank - place.local_ranks.start)


def load_model(
    settings: Settings, checkpoint: Checkpoint, context: int, control: Control, ranks: Ranks | None = None
) -> CoreExecutor:
    """The executor of the model, or of this rank's part of it; progress goes to the supervisor."""
    plan = BlockPlan.of(settings, context)

    def report(progress: LoadProgress) -> None:
        control.send("loading", what="loading weights", share=progress.done / max(progress.total, 1))

    options = ExecutorOptions(
        device=settings.device,
        dtype=settings.dtype,
        quantization=settings.quantization,  # type: ignore[arg-type]  # one of its choices, checked by settings.py
        threads=settings.threads or usable_threads(),
        max_sequences=settings.max_sequences,
        max_context=context,
        max_batched_tokens=settings.max_batched_tokens,
        kv_blocks=settings.kv_blocks or (plan.pool(BLOCK_TOKENS) if plan else 0),
        kv_setting="BLOCK_BS" if plan and not settings.kv_blocks else "",
        kv_memory=settings.kv_memory,
        kv_memory_share=settings.kv_memory_share,
        batch_invariant=settings.batch_invariant,
        graphs=settings.cuda_graphs,
        overlap=settings.overlap,
    )
    try:
        return load_executor(checkpoint, options, report, ranks)
    except (ValueError, RuntimeError, ConnectionError) as error:  # from the core, which knows no OarlockError
        raise OarlockError(f"{settings.model}: {error}") from error


def _facts(settings: Settings, checkpoint: Checkpoint) -> dict[str, str]:
    """What must be the same on all ranks. The model is told by what each of them can read, whose files may differ."""
    tensors = sorted((name, ref.shape, ref.format) for name, ref in checkpoint.tensors())
    norms = np.concatenate([checkpoint[name].read() for name in ("layers.0.attn_norm", "final_norm")])
    model = hashlib.sha256(repr((checkpoint.spec, tensors)).encode() + norms.tobytes()).hexdigest()
    named = ["device", "dtype", "quantization", "max_sequences", "max_context", "max_batched_tokens"]
    named += ["batch_invariant", "cuda_graphs"]  # which decide how a GPU's steps are padded
    return {
        "version": __version__,
        "model": model[:16],
        "files for ranks": str(checkpoint.ranks),  # the parts are cut by it
        **{name: str(getattr(settings, name)) for name in named},
    }
