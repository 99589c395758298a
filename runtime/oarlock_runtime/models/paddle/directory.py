"""Opens a PaddleNLP static-graph directory: config.json, and a program with its parameters at the root or by rank.

Used by the engine process of every rank and the command line. A directory of several ranks becomes one model, of which
a rank of as many opens its own share alone. Kinds of graphs that are known and not supported yet are refused by name.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.families import spec_from_config
from oarlock_runtime.models.fields import Fields, read_json
from oarlock_runtime.models.paddle.layout import Layout
from oarlock_runtime.models.paddle.parameters import read_records
from oarlock_runtime.models.paddle.program import program_file
from oarlock_runtime.models.sharding import can_be_even
from oarlock_runtime.models.spec import ModelSpec
from oarlock_runtime.models.tensors import TensorRef

CONFIG = "config.json"
RANK = re.compile(r"rank_(\d{1,4})")
EXPERTS, LATENT = "a mixture of experts", "multi-head latent attention"
REFUSED_TYPES = {
    "mixtral": EXPERTS,
    "qwen2_moe": EXPERTS,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v2_mtp": LATENT,
    "deepseek_v3_mtp": LATENT,
}
WEIGHT_ONLY = ("weight_only_int8", "weight_only_int4")
# PaddleNLP's other names of keys that Hugging Face's configurations have.
ALIASES = {"num_layers": "num_hidden_layers", "n_head": "num_attention_heads"}


@dataclass(frozen=True)
class PaddleModel:
    """What a directory holds; `ranks` is for how many processes it was exported."""

    spec: ModelSpec
    refs: dict[str, TensorRef]
    ranks: int


def is_paddle(directory: Path) -> bool:
    """Whether a directory holds a Paddle program, at its root or of any rank."""
    places = [directory, *(directory / f"rank_{rank}" for rank in _ranks_in(directory))]
    return any(program_file(place) is not None for place in places)


def open_paddle(directory: Path, packing: str = "auto", rank: int = 0, world: int = 1) -> PaddleModel:
    """The model as rank `rank` of `world` needs it: of files that were cut for `world` ranks its own share alone.

    CheckpointError names the file, and the field or parameter at fault.
    """
    config = read_json(directory / CONFIG)
    _refuse(config)
    generation = directory / "generation_config.json"
    _, spec = spec_from_config(plain_config(config), read_json(generation) if generation.exists() else None)
    exported = config.integer("infer_model_max_seq_len", spec.max_context)
    found = _ranks_in(directory)
    count = _rank_count(config, found)
    alone = count > 1 and can_be_even(spec, count)  # a rank can do with its own
    own = alone and count == world
    wanted = {rank} if own else set(range(count))
    if found and not (wanted <= found <= set(range(count))):
        here = ", ".join(f"rank_{number}" for number in sorted(found))
        raise CheckpointError(f"{directory}: has {here}; {_expected(count, rank if own else None, alone)}")
    ranks = [
        read_records(directory / f"rank_{number}" if found else directory) if number in wanted else None
        for number in range(count)
    ]
    group = config.integer("weightonly_group_size", -1, low=-1)
    layout = Layout(ranks, replace(spec, max_context=exported), packing, group)
    return PaddleModel(layout.spec, layout.refs(), count)


def _ranks_in(directory: Path) -> set[int]:
    """Numbers of the ranks' directories: none where the root alone has a program."""
    return {int(match[1]) for entry in directory.iterdir() if (match := RANK.fullmatch(entry.name)) and entry.is_dir()}


def _rank_count(config: Fields, found: set[int]) -> int:
    """For how many ranks the files were cut."""
    degree = config.integer("tensor_parallel_degree", 1, low=-1)
    if not found:
        return 1
    return degree if degree > 1 else max(found) + 1


def _expected(count: int, rank: int | None, alone: bool) -> str:
    """What would be right: of a rank that needs its own files alone, or of one that needs all."""
    if rank is not None:
        return f"rank {rank} of {count} needs rank_{rank} of rank_0 to rank_{count - 1}"
    hint = f"; each of {count} ranks (MP_NUM={count}) can do with its own" if alone else ""
    return f"expected are rank_0 to rank_{count - 1}{hint}"


def plain_config(config: Fields) -> Fields:
    """The configuration as Hugging Face would write it: PaddleNLP's own keys and names taken away or translated."""
    values = {key: value for key, value in config.values.items() if key != "quantization_config"}
    for theirs, ours in ALIASES.items():
        if values.get(ours) is None and theirs in values:
            values[ours] = values[theirs]
    if values.get("model_type") is not None:
        values.pop("architectures", None)  # it may name a class that PaddleNLP runs static graphs with
    scaling, factor = values.get("rope_scaling_type"), values.get("rope_scaling_factor", 1.0)
    if values.get("rope_scaling") is None and scaling is not None:
        values["rope_scaling"] = {"rope_type": scaling, "factor": factor}
    return Fields(config.file, values, config.prefix)


def _refuse(config: Fields) -> None:
    """Raises for kinds of graphs that are known and not supported yet."""
    kind = config.text("model_type", "")
    if kind in REFUSED_TYPES:
        raise config.error("model_type", f"static graphs of {kind} ({REFUSED_TYPES[kind]}) are not supported yet")
    quantized = config.section("quantization_config")
    for fields in (config, quantized) if quantized is not None else (config,):
        scheme = fields.text("quant_type", "")
        if scheme not in ("", "None", *WEIGHT_ONLY):
            raise fields.error(
                "quant_type", f"static graphs of {scheme} are not supported yet; supported are {', '.join(WEIGHT_ONLY)}"
            )
    for name in ("infer_model_cachekv_int8_type", "cachekv_int8_type"):
        if config.get(name) not in (None, "None", ""):
            raise config.error(name, f"{config.get(name)!r:.40}: an 8-bit KV cache (c8) is not supported yet")
