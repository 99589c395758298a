"""How tensor-parallel ranks share a model's tensors between them.

Used by the engine process and the command line, for reading and for writing alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from oarlock_runtime.models.spec import ModelSpec, layer_shapes
from oarlock_runtime.models.tensors import Array

BY_INPUTS = ("o", "down")


@dataclass(frozen=True)
class Shares:
    """A model in `ranks` parts. `whole_keys`: every rank has all keys and values, as where those can't be shared."""

    spec: ModelSpec
    ranks: int
    whole_keys: bool

    def is_whole(self, part: str) -> bool:
        """Whether every rank has all of a layer's matrix or bias."""
        return self.ranks == 1 or (self.whole_keys and part[0] in "kv")

    def shape(self, part: str) -> tuple[int, ...]:
        """The shape of one rank's share of a layer's matrix or bias, (outputs, inputs) or (outputs,)."""
        shape = layer_shapes(self.spec)[part]
        if part in BY_INPUTS:
            return shape[0], shape[1] // self.ranks
        return shape if self.is_whole(part) else (shape[0] // self.ranks, *shape[1:])

    def spans(self, parts: Sequence[str]) -> list[tuple[str, int, int]]:
        """Each part's first and last output in one rank's parameter, which holds them one behind the other."""
        spans, at = [], 0
        for part in parts:
            spans.append((part, at, at + self.shape(part)[0]))
            at = spans[-1][2]
        return spans

    def cut(self, part: str, tensor: Array, rank: int) -> Array:
        """One rank's share of a layer's tensor."""
        shape = self.shape(part)
        if part in BY_INPUTS:
            return tensor[:, rank * shape[1] : (rank + 1) * shape[1]]
        return tensor if self.is_whole(part) else tensor[rank * shape[0] : (rank + 1) * shape[0]]
