"""Opens a PaddleNLP static-graph directory: config.json, and a program with its parameters at the root or by rank.

Used by the engine process and the command line. A directory of several ranks becomes one model. Kinds of graphs that
are known and not supported yet are refused by name.
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
    """Whether a directory holds a Paddle program, at its root or in rank_0."""
    return any(program_file(place) is not None for place in (directory, directory / "rank_0"))


def open_paddle(directory: Path, packing: str = "auto") -> PaddleModel:
    """CheckpointError names the file, and the field or parameter at fault."""
    config = read_json(directory / CONFIG)
    _refuse(config)
    generation = directory / "generation_config.json"
    _, spec = spec_from_config(plain_config(config), read_json(generation) if generation.exists() else None)
    exported = config.integer("infer_model_max_seq_len", spec.max_context)
    places = rank_directories(directory, config)
    ranks = [read_records(place) for place in places]
    group = config.integer("weightonly_group_size", -1, low=-1)
    layout = Layout(ranks, replace(spec, max_context=exported), packing, group)
    return PaddleModel(layout.spec, layout.refs(), len(ranks))


def rank_directories(directory: Path, config: Fields) -> list[Path]:
    """The directories with a program, in the order of ranks: rank_0 and so on, or the root alone."""
    if not (directory / "rank_0").is_dir():
        return [directory]
    found = {int(match[1]) for entry in directory.iterdir() if (match := RANK.fullmatch(entry.name)) and entry.is_dir()}
    count = max(config.integer("tensor_parallel_degree", 1, low=-1), 1)
    expected = set(range(count if count > 1 else len(found)))
    if found != expected:
        listed = ", ".join(f"rank_{rank}" for rank in sorted(found))
        raise CheckpointError(f"{directory}: has {listed}; expected are rank_0 to rank_{len(expected) - 1}")
    return [directory / f"rank_{rank}" for rank in sorted(found)]


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
