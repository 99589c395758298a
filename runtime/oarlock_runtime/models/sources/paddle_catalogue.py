"""PaddleNLP's ready-made static-graph models, and which part of one a host needs. Read wherever models are fetched.

A model's name is organisation/name/variant. On its server a model is one folder (`model`), or one for each of two
hosts (`node1`, `node2`), and models for speculative decoding bring the draft (`mtp`).
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from oarlock_runtime.models.errors import SourceError

MODEL, MASTER, SLAVE, DRAFT = PARTS = ("model", "node1", "node2", "mtp")
_KNOWN = re.compile(r".*Qwen.*|.+Llama.+|.+Mixtral.+|.+DeepSeek.+")  # the families that PaddleNLP's own tool takes
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")
_DISTILLED = [f"deepseek-ai/DeepSeek-R1-Distill-Qwen-{size}" for size in ("1.5B", "7B", "14B", "32B")]


@dataclass(frozen=True)
class StaticModel:
    """One model of the catalogue: for how many hosts it was exported, and whether a draft comes with it."""

    name: str
    nodes: int = 1
    draft: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders it has on the server."""
        return ((MODEL,) if self.nodes == 1 else (MASTER, SLAVE)) + ((DRAFT,) if self.draft else ())


CATALOGUE = (
    *(StaticModel(f"deepseek-ai/DeepSeek-R1/{variant}") for variant in ("weight_only_int4", "a8w8_fp8_wint4")),
    *(
        StaticModel(f"deepseek-ai/DeepSeek-R1-MTP/{variant}", draft=True)
        for variant in ("weight_only_int4", "a8w8_fp8_wint4")
    ),
    *(
        StaticModel(f"deepseek-ai/DeepSeek-R1-{kind}2nodes/{variant}", nodes=2, draft=bool(kind))
        for kind in ("", "MTP-")
        for variant in ("weight_only_int8", "a8w8_fp8")
    ),
    *(StaticModel(f"{name}/weight_only_int8") for name in _DISTILLED),
    *(
        StaticModel(f"{name}-Block-Attn/{variant}")
        for name in _DISTILLED
        for variant in ("weight_only_int8", "float16")
    ),
    StaticModel("deepseek-ai/DeepSeek-R1-Distill-Llama-8B/weight_only_int8"),
    StaticModel("deepseek-ai/DeepSeek-R1-Distill-Llama-8B-Block-Attn/weight_only_int8"),
    StaticModel("deepseek-ai/DeepSeek-R1-Distill-Llama-8B-Block-Attn/float16"),
    StaticModel("deepseek-ai/DeepSeek-R1-Distill-Llama-70B/weight_only_int8"),
    StaticModel("Qwen/QwQ-32B-Append-Attn/weight_only_int8"),
    StaticModel("meta-llama/Meta-Llama-3-8B-Instruct-Append-Attn/bfloat16"),
    StaticModel("meta-llama/Meta-Llama-3-8B-Instruct-Block-Attn/float16"),
    StaticModel("Qwen/Qwen1.5-0.5B-Block-Attn/bfloat16"),
    StaticModel("Qwen/Qwen1.5-0.5B-Block-Attn/float16"),
    StaticModel("Qwen/Qwen2-1.5B-Instruct-Append-Attn/bfloat16"),
    StaticModel("Qwen/Qwen2-1.5B-Instruct-Block-Attn/float16"),
)
_BY_NAME = {model.name: model for model in CATALOGUE}


@dataclass(frozen=True)
class Host:
    """Which of a group's hosts this is."""

    nodes: int = 1
    master: bool = True

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Self:
        """By MP_NNODE, and NODE_RANK or else POD_0_IP and HOST_IP. SourceError for an MP_NNODE that is no number."""
        text = environ.get("MP_NNODE", "").strip() or "1"
        if not text.isdigit() or int(text) < 1:
            raise SourceError(f"MP_NNODE={text!r} must be an integer of at least 1")
        rank = environ.get("NODE_RANK", "").strip()
        if rank:
            return cls(int(text), rank == "0")
        return cls(int(text), environ.get("POD_0_IP", "") == environ.get("HOST_IP", ""))


def part_for(name: str, host: Host) -> str:
    """The folder of model `name` that `host` needs. SourceError for an unknown name or the wrong number of hosts."""
    check_name(name)
    known = _BY_NAME.get(name)
    if known is not None and known.nodes == 1:
        return MODEL  # whose ranks the group cuts anew, unless it has as many
    if known is not None and known.nodes != host.nodes:
        raise SourceError(f"{name} was exported for {known.nodes} nodes; this group has {host.nodes} (MP_NNODE)")
    if host.nodes > 2:
        raise SourceError(f"{name}: models are kept for 1 or 2 nodes; this group has {host.nodes} (MP_NNODE)")
    return MODEL if host.nodes == 1 else MASTER if host.master else SLAVE


def check_name(name: str) -> None:
    """SourceError unless it is in the catalogue, or a mirror could have it."""
    if name in _BY_NAME or (_KNOWN.match(name) and _NAME.fullmatch(name) and ".." not in name):
        return
    near = difflib.get_close_matches(name, _BY_NAME, n=3, cutoff=0.3)
    raise SourceError(
        f"{name[:200]!r} is no model of PaddleNLP's catalogue (docs/paddle.md, `download_model.py --list`)"
        + (f"; near are {', '.join(near)}" if near else "")
    )
