"""Which parameter of a PaddleNLP static graph is which tensor of ours, how it is turned, and how ranks share it.

Used by the engine process and the command line. A matrix of the program holds one or more of our tensors side by side
along its outputs; with tensor parallelism every rank has a share of the outputs, or of the inputs, of each.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.paddle.ends import find_ends
from oarlock_runtime.models.paddle.packing import UNIT, likelier_packing, stored_shape
from oarlock_runtime.models.paddle.parameters import Record
from oarlock_runtime.models.paddle.refs import DenseSlice, PackedSlice, PaddleRef, Slice
from oarlock_runtime.models.paddle.shares import BY_INPUTS, Shares
from oarlock_runtime.models.spec import ModelSpec, layer_shapes
from oarlock_runtime.models.tensors import DENSE, TensorRef

Rank = dict[str, Record]
LAYER = re.compile(r"(fuse\w+)\.(\d{1,5})\.(\w+)")
GROUPS = (64, 128)
QUANTIZED = ("i8", "ui8")


@dataclass(frozen=True)
class Matrix:
    """A matrix of each layer: our tensors along its outputs. `turned`: unless quantized, its rows are inputs."""

    suffix: str
    parts: tuple[str, ...]
    turned: bool


MATRICES = (
    Matrix("qkv_weight", ("q", "k", "v"), False),
    Matrix("out_proj_weight", ("o",), True),
    Matrix("ffn1_weight", ("gate", "up"), True),
    Matrix("ffn2_weight", ("down",), True),
)
VECTORS = {"ln_scale": "attn_norm", "ffn_ln_scale": "ffn_norm", "q_norm_weight": "q_norm", "k_norm_weight": "k_norm"}
BIAS, BIAS_PARTS = "qkv_bias", ("q_bias", "k_bias", "v_bias")
SCALE = "_scale"
# Ends of names that tell a kind of graph that is known, and not supported yet.
REFUSED = {
    "_out_scale": "8-bit activations (a8w8) or an 8-bit KV cache (c8)",
    "cache_k_scale": "an 8-bit KV cache (c8)",
    "cache_v_scale": "an 8-bit KV cache (c8)",
    "ffn1_0_weight": "8-bit floats (a8w8_fp8)",
    "ffn1_1_weight": "8-bit floats (a8w8_fp8)",
    "_shift": "8-bit activations (a8w8)",
    "_smooth": "8-bit activations (a8w8)",
    "gate_weight": "mixtures of experts",
    "_b_proj_weight": "multi-head latent attention (deepseek)",
}


class Layout:
    """Makes our tensors of the records of ranks. CheckpointError names the file and the parameter at fault.

    ranks: the records of each rank that the files were cut for, None where they are not wanted: that rank's share of
    a tensor can't be read then. packing: "sm75", "sm70", or "auto", which looks at the first quantized matrix. group:
    of the scales, where their number leaves a choice.
    """

    def __init__(self, ranks: Sequence[Rank | None], spec: ModelSpec, packing: str, group: int) -> None:
        self._ranks = ranks
        self._first = next(rank for rank in ranks if rank is not None)
        self._packing = packing
        self._group = group
        for what, size in (("attention heads", spec.heads), ("feed-forward channels", spec.ffn)):
            if size % len(ranks):
                raise CheckpointError(f"{self._file(self._first)}: {len(ranks)} ranks can't share {size} {what}")
        self._names = self._layer_names(spec)
        others = {name: record for name, record in self._first.items() if not LAYER.fullmatch(name)}
        self._ends = find_ends(others, spec, len(ranks))
        self.spec = replace(spec, tied_embeddings=self._ends.head is None)
        self._shapes = layer_shapes(self.spec)
        self._shares = Shares(self.spec, len(ranks), self._keys_are_whole())

    def refs(self) -> dict[str, TensorRef]:
        """Every tensor of `spec` by canonical name."""
        ends, hidden = self._ends, (self.spec.hidden,)
        refs = [
            self._end("embed", ends.embed, False),
            self._vector("final_norm", self._record(self._first, ends.norm), hidden),
        ]
        if ends.head is not None:
            refs.append(self._end("lm_head", ends.head, ends.turned))
        for layer in range(self.spec.layers):
            refs += [*self._matrices(layer), *self._vectors(layer)]
        return {ref.name: ref for ref in refs}

    # --- records

    def _layer_names(self, spec: ModelSpec) -> dict[tuple[int, str], str]:
        """Names of the layers' parameters by layer and suffix, all of them known."""
        matrices = [matrix.suffix for matrix in MATRICES]
        known = {*matrices, *(suffix + SCALE for suffix in matrices), BIAS if spec.qkv_bias else ""}
        known |= {suffix for suffix, name in VECTORS.items() if name in layer_shapes(spec)}
        names: dict[tuple[int, str], str] = {}
        for name, record in self._first.items():
            match = LAYER.fullmatch(name)
            if match is None:
                continue
            layer, suffix = int(match[2]), match[3]
            reason = next((REFUSED[end] for end in REFUSED if suffix.endswith(end)), None)
            if record.parameter.dtype.startswith("f8"):
                reason = "8-bit floats (a8w8_fp8)"
            if reason is not None:
                raise record.error(f"static graphs with {reason} are not supported yet")
            if suffix not in known or layer >= spec.layers or (layer, suffix) in names:
                raise record.error(f"a {spec.family} model of {spec.layers} layers has no such parameter")
            names[layer, suffix] = name
        return names

    def _of_layer(self, rank: Rank, layer: int, suffix: str) -> Record:
        name = self._names.get((layer, suffix))
        if name is None:
            prefix = next((known.partition(".")[0] for known in self._names.values()), f"fuse{self.spec.family}")
            name = f"{prefix}.{layer}.{suffix}"
        return self._record(rank, name)

    def _record(self, rank: Rank, name: str) -> Record:
        if name not in rank:
            raise CheckpointError(f"{self._file(rank)}: parameter {name} is missing")
        return rank[name]

    def _file(self, rank: Rank) -> str:
        return str(next(iter(rank.values())).file.path)

    def _of_ranks(self, slice_of: Callable[[Rank], Slice]) -> list[Slice | None]:
        return [slice_of(rank) if rank is not None else None for rank in self._ranks]

    def _expect(self, record: Record, dims: tuple[int, ...], dtypes: Sequence[str] = tuple(DENSE)) -> None:
        parameter = record.parameter
        if parameter.dtype not in dtypes:
            raise record.error(f"its element type {parameter.dtype} is not one of {', '.join(dtypes)}")
        if parameter.dims != dims:
            ranks = f" in each of {len(self._ranks)} ranks" if len(self._ranks) > 1 else ""
            wanted = replace(parameter, dims=dims)
            raise record.error(
                f"is {parameter}, {parameter.nbytes} bytes; "
                f"config.json asks for {list(dims)}, {wanted.nbytes} bytes{ranks}"
            )

    def _keys_are_whole(self) -> bool:
        """Whether every rank has all keys and values, as where those can't be shared out."""
        ranks = len(self._ranks)
        if ranks == 1 or self.spec.kv_heads % ranks:
            return ranks > 1
        queries, keys = self._shapes["q"][0] // ranks, 2 * self._shapes["k"][0]
        stored = self._of_layer(self._first, 0, "qkv_weight").parameter.dims[0]
        shared, whole = queries + keys // ranks, queries + keys
        return stored in (whole, whole // 2) and stored not in (shared, shared // 2)

    # --- tensors

    def _end(self, name: str, source: str, turned: bool) -> PaddleRef:
        """The embedding or the head, whole in every rank or cut along the vocabulary."""
        vocab, hidden = self.spec.vocab, self.spec.hidden
        height = self._record(self._first, source).parameter.dims[1 if turned else 0]

        def slice_of(rank: Rank) -> Slice:
            record = self._record(rank, source)
            self._expect(record, (hidden, height) if turned else (height, hidden))
            return DenseSlice(record, 0, height, turned)

        return self._ref(name, (vocab, hidden), self._of_ranks(slice_of), whole=height == vocab)

    def _vectors(self, layer: int) -> list[PaddleRef]:
        refs = []
        for suffix, part in VECTORS.items():
            if part in self._shapes:
                record = self._of_layer(self._first, layer, suffix)
                refs.append(self._vector(f"layers.{layer}.{part}", record, self._shapes[part]))
        if self.spec.qkv_bias:
            spans = self._shares.spans(BIAS_PARTS)

            def slice_of(rank: Rank) -> Slice:
                record = self._of_layer(rank, layer, BIAS)
                self._expect(record, (spans[-1][2],))
                return DenseSlice(record, 0, spans[-1][2])

            refs += self._parts(layer, spans, self._of_ranks(slice_of))
        return refs

    def _vector(self, name: str, record: Record, shape: tuple[int, ...]) -> PaddleRef:
        self._expect(record, shape)
        return self._ref(name, shape, [DenseSlice(record, 0, shape[0])])

    def _matrices(self, layer: int) -> list[PaddleRef]:
        refs: list[PaddleRef] = []
        for matrix in MATRICES:
            slice_of = partial(self._matrix, layer=layer, matrix=matrix)
            refs += self._parts(layer, self._shares.spans(matrix.parts), self._of_ranks(slice_of))
        return refs

    def _parts(
        self, layer: int, spans: Sequence[tuple[str, int, int]], slices: Sequence[Slice | None]
    ) -> Iterator[PaddleRef]:
        """Our tensors, which lie side by side along the outputs of each rank's matrix or bias."""
        for part, start, stop in spans:
            cut = [matrix.outputs(start, stop) if matrix is not None else None for matrix in slices]
            axis = 1 if part in BY_INPUTS else 0
            yield self._ref(f"layers.{layer}.{part}", self._shapes[part], cut, axis, self._shares.is_whole(part))

    def _matrix(self, rank: Rank, layer: int, matrix: Matrix) -> Slice:
        """One rank's matrix, whose shape is (outputs, inputs)."""
        record = self._of_layer(rank, layer, matrix.suffix)
        shape = self._shares.spans(matrix.parts)[-1][2], self._shares.shape(matrix.parts[0])[1]
        if record.parameter.dtype not in QUANTIZED:
            self._expect(record, shape[::-1] if matrix.turned else shape, (*DENSE, *QUANTIZED))
            return DenseSlice(record, 0, shape[0], matrix.turned)
        bits = 8 if record.parameter.dims[:1] == shape[:1] else 4
        self._expect(record, stored_shape(bits, *shape), QUANTIZED)
        if shape[0] % UNIT or shape[1] % UNIT:
            raise record.error(
                f"{shape[0]} outputs of {shape[1]} inputs are no multiples of {UNIT}, as int{bits} needs"
            )
        scales = self._of_layer(rank, layer, matrix.suffix + SCALE)
        group = self._group_of(scales, *shape)
        if self._packing == "auto":
            found = likelier_packing(record.array(), bits, 1 if group < 0 else scales.parameter.dims[0])
            if found is None:
                raise record.error("its packing can't be told from its codes; give --paddle-packing sm75 or sm70")
            self._packing = found
        return PackedSlice(record, scales, bits, self._packing, group, 0, shape[0])

    def _group_of(self, scales: Record, outputs: int, inputs: int) -> int:
        """How many inputs have a scale of their own, or -1 where all have the same."""
        dims = scales.parameter.dims
        if scales.parameter.dtype in DENSE and dims in ((outputs,), (1, outputs)):
            return -1
        fitting = [group for group in GROUPS if dims == (-(-inputs // group), outputs)]
        if scales.parameter.dtype not in DENSE or not fitting:
            grouped = " or ".join(f"{[-(-inputs // group), outputs]}" for group in GROUPS)
            raise scales.error(f"is {scales.parameter}; expected are floats, {[outputs]} or in groups {grouped}")
        return self._group if self._group in fitting else fitting[0]

    def _ref(
        self,
        name: str,
        shape: tuple[int, ...],
        slices: Sequence[Slice | None],
        axis: int = 0,
        whole: bool = False,
    ) -> PaddleRef:
        """`slices` by rank; `whole`: each is all of the tensor."""
        opened = [part for part in slices if part is not None]
        first = opened[0]
        for other in opened:
            if other.record.parameter.dtype != first.record.parameter.dtype:
                raise other.record.error(
                    f"is {other.record.parameter.dtype}, but {first.record.parameter.dtype} in {first.record.file.path}"
                )
        held = opened[:1] if whole else list(slices)
        nbytes = sum(part.nbytes for part in held if part is not None)
        record = first.record
        return PaddleRef(
            name,
            record.parameter.name,
            record.file,
            record.offset,
            nbytes,
            shape,
            first.format,
            slices=held,
            axis=axis,
        )
