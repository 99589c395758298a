"""PaddleNLP's and FastDeploy's names on /metrics, for what means the same here. Pure; runs in the supervisor."""

from collections.abc import Iterable, Mapping
from typing import Any

from oarlock_runtime.server.metrics import Family
from oarlock_runtime.server.paddle.block_plan import BlockPlan
from oarlock_runtime.settings import Settings

_FASTDEPLOY = "fastdeploy:"
# Families of ours that FastDeploy has under another name.
_SAME = {
    "oarlock_requests_running": "num_requests_running",
    "oarlock_requests_waiting": "num_requests_waiting",
    "oarlock_prompt_tokens": "prompt_tokens",
    "oarlock_generation_tokens": "generation_tokens",
    "oarlock_prefix_cache_hits": "prefix_cache_token_num",
    "oarlock_kv_usage_ratio": "gpu_cache_usage_perc",
    "oarlock_kv_blocks": "max_gpu_block_num",
    "oarlock_time_to_first_token_seconds": "time_to_first_token_seconds",
    "oarlock_time_per_output_token_seconds": "time_per_output_token_seconds",
    "oarlock_request_seconds": "e2e_request_latency_seconds",
    "oarlock_queue_seconds": "request_queue_time_seconds",
    "oarlock_request_output_tokens": "request_generation_tokens",
}


def paddle_families(stats: Mapping[str, Any], facts: Mapping[str, Any], settings: Settings) -> list[Family]:
    """PaddleNLP's five series, from the engine's counters (EngineStats) and `facts` that never change (EngineReady).

    PaddleNLP counts the blocks that prompts may take; of a pool that isn't split, those are the same share.
    """
    plan = BlockPlan.of(settings, facts["context"])
    free = (facts["blocks"] - stats["blocks_used"]) / facts["blocks"]
    most = plan.host if plan else facts["blocks"]
    values = {
        "batch_size": float(stats["running"]),
        "max_batch_size": float(facts["max_sequences"]),
        "block_num": float(int(most * free)),
        "max_block_num": float(most),
        "available_resource": int(most * free) / most if most else 0.0,
    }
    name = "inference_server_metrics"
    return [
        {
            "name": name,
            "kind": "gauge",
            "help": "Metrics for monitoring inference server status",
            "samples": [(name, {series: series}, value) for series, value in values.items()],
        },
        *(
            _gauge(*told)
            for told in (
                ("batch_size", "Requests in the batch.", values["batch_size"]),
                ("max_batch_size", "Most requests in the batch.", values["max_batch_size"]),
                (
                    "available_batch_size",
                    "Requests that the batch has room for.",
                    values["max_batch_size"] - values["batch_size"],
                ),
                ("free_gpu_block_num", "Free KV blocks.", float(facts["blocks"] - stats["blocks_used"])),
                ("available_gpu_resource", "Share of the KV blocks that is free.", free),
                (
                    "hit_token_rate",
                    "Share of prompt tokens found in the prefix cache.",
                    stats["prefix_hits_total"] / (stats["prefix_queries_total"] or 1),
                ),
            )
        ),
    ]


def renamed(families: Iterable[Family]) -> list[Family]:
    """The families that FastDeploy has too, under its names."""
    return [_renamed(family, _FASTDEPLOY + _SAME[family["name"]]) for family in families if family["name"] in _SAME]


def _renamed(family: Family, name: str) -> Family:
    samples = [(name + full.removeprefix(family["name"]), labels, value) for full, labels, value in family["samples"]]
    return {**family, "name": name, "samples": samples}


def _gauge(name: str, help: str, value: float) -> Family:
    return {
        "name": _FASTDEPLOY + name,
        "kind": "gauge",
        "help": help,
        "samples": [(_FASTDEPLOY + name, {}, value)],
    }
