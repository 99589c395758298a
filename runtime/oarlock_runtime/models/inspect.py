"""The facts of a model that `oarlock model inspect` prints: what it is, what it is held as, and the memory it takes.

Runs in the command line; reads headers only, no weights.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.loading import Quantization, WeightGroup, load_plan
from oarlock_runtime.models.spec import ModelSpec

LAYER = re.compile(r"layers\.\d+\.")


@dataclass(frozen=True)
class WeightRow:
    """Weights of one kind: `layers.*.qkv` stands for all layers' that are stored and held alike.

    shape is of the stacked pieces, (outputs, inputs); stored names the file's formats, held the core's.
    """

    name: str
    count: int
    shape: tuple[int, ...]
    stored: str
    held: str
    file_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class ModelReport:
    """Everything about a model and a way of holding it. Bytes unless said otherwise."""

    path: Path
    container: str
    spec: ModelSpec
    quantization: str
    dtype: str
    parameters: int
    file_bytes: int
    weight_bytes: int
    step_bytes: int  # of weights that a decode step reads
    kv_bytes_per_token: int
    rows: tuple[WeightRow, ...]
    ranks: int = 1  # for how many processes the files were cut

    def kv_bytes(self, tokens: int) -> int:
        """Keys and values of `tokens` tokens."""
        return tokens * self.kv_bytes_per_token


def inspect_model(
    path: Path | str, quantization: Quantization = "auto", dtype: str = "bf16", paddle_packing: str = "auto"
) -> ModelReport:
    """Opens the model at `path` and works out how it would be held. CheckpointError when it can't be opened."""
    return report_on(open_checkpoint(path, paddle_packing), quantization, dtype)


def report_on(checkpoint: Checkpoint, quantization: Quantization = "auto", dtype: str = "bf16") -> ModelReport:
    """The report of an open checkpoint; see inspect_model."""
    spec = checkpoint.spec
    plan = load_plan(checkpoint, quantization, dtype)
    embedding = next(group for group in plan if group.name == "embed")
    weight_bytes = sum(group.nbytes for group in plan)
    return ModelReport(
        path=checkpoint.path,
        container=checkpoint.container,
        spec=spec,
        quantization=quantization,
        dtype=dtype,
        parameters=spec.parameters,
        file_bytes=sum(ref.nbytes for ref in checkpoint.refs.values()),
        weight_bytes=weight_bytes,
        # A step reads a few rows of an embedding that isn't the head too.
        step_bytes=weight_bytes if spec.tied_embeddings else weight_bytes - embedding.nbytes,
        kv_bytes_per_token=spec.kv_bytes_per_token(4 if dtype == "f32" else 2),
        rows=tuple(_rows(plan)),
        ranks=checkpoint.ranks,
    )


def describe_rope(spec: ModelSpec) -> str:
    """The rotary embedding in a few words."""
    rope = spec.rope
    if rope.scaling == "none":
        return f"base {rope.base:g}"
    if rope.scaling == "divisors":
        return f"base {rope.base:g}, scaled by the file's rope_freqs"
    return f"base {rope.base:g}, {rope.scaling} scaling by {rope.factor:g}"


def _rows(plan: list[WeightGroup]) -> list[WeightRow]:
    rows: dict[tuple[str, str, str], WeightRow] = {}
    for group in plan:
        name = LAYER.sub("layers.*.", group.name)
        stored = "+".join(dict.fromkeys(part.ref.format for part in group.parts))
        known = rows.get((name, stored, group.held))
        rows[name, stored, group.held] = WeightRow(
            name=name,
            count=1 + (known.count if known else 0),
            shape=(sum(part.shape[0] for part in group.parts), *group.parts[0].shape[1:]),
            stored=stored,
            held=group.held,
            file_bytes=group.file_bytes + (known.file_bytes if known else 0),
            held_bytes=group.nbytes + (known.held_bytes if known else 0),
        )
    return sorted(rows.values(), key=_place)


def _place(row: WeightRow) -> int:
    """Where a kind of weight stands in a step: the embedding, the layers, the rest."""
    return {"embed": 0, "final_norm": 2, "lm_head": 3}.get(row.name, 1)
