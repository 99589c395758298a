"""Finds what stands before and behind a static graph's layers: the embedding, the last norm and the head.

Used by the engine process and the command line. Paddle makes up their names (`embedding_0.w_0`, `linear_0.w_0`), so
they are told by their dimensions, and by words in their names where those leave a choice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.parameters import Record
from oarlock_runtime.models.spec import ModelSpec
from oarlock_runtime.models.tensors import DENSE


@dataclass(frozen=True)
class Ends:
    """Names of parameters; no head where the embedding serves as it. `turned`: the head's rows are inputs."""

    embed: str
    norm: str
    head: str | None
    turned: bool


def find_ends(others: Mapping[str, Record], spec: ModelSpec, ranks: int) -> Ends:
    """`others`: the parameters of one rank that are no layer's. CheckpointError says what is missing or ambiguous."""
    where = next(iter(others.values())).file.path if others else "the program"
    dims = {name: record.parameter.dims for name, record in others.items() if record.parameter.dtype in DENSE}
    heights = {spec.vocab} if spec.vocab % ranks else {spec.vocab, spec.vocab // ranks}
    embeddings = {(height, spec.hidden) for height in heights}
    heads = {(spec.hidden, height) for height in heights}
    fitting = [name for name in dims if dims[name] in embeddings]
    embed = _only([name for name in fitting if "embed" in name]) or _only(
        [name for name in fitting if "head" not in name]
    )
    if embed is None:
        shape = " or ".join(f"{[height, spec.hidden]}" for height in sorted(heights, reverse=True))
        shape += ", which config.json asks for"
        raise CheckpointError(f"{where}: {len(fitting)} parameters could be the embedding, of dimensions {shape}")
    behind = [name for name in dims if name != embed and dims[name] in embeddings | heads]
    head = _only(behind)
    if behind and head is None:
        raise CheckpointError(f"{where}: parameters {', '.join(behind)}: which of them is the head can't be told")
    norms = [name for name in dims if dims[name] == (spec.hidden,)]
    norm = _only(norms) or _only([name for name in norms if "norm" in name])
    if norm is None:
        raise CheckpointError(f"{where}: {len(norms)} parameters could be the last norm, of {spec.hidden} values")
    return Ends(embed, norm, head, head is not None and dims[head] in heads)


def _only(names: list[str]) -> str | None:
    return names[0] if len(names) == 1 else None
