"""What /metrics tells: histograms kept by each server process, the engine's counters, and one page made of all of them.

Each process describes its families as plain data (`Family`), which the supervisor adds up by name and labels and
prints in Prometheus's text format, so that a scrape sees one server however many processes it has.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NotRequired, TypedDict

Sample = tuple[str, dict[str, str], float]  # full name, labels, value


class Family(TypedDict):
    """One metric. `samples` carry the suffixes (_bucket, _sum, _count, _total) in their names."""

    name: str
    kind: str  # counter, gauge, histogram
    help: str
    samples: list[Sample]
    peak: NotRequired[bool]  # processes' values are not added up; the highest counts


def merge(parts: Iterable[Iterable[Family]]) -> list[Family]:
    """Families of several processes as one list; equal samples are added up."""
    families: dict[str, Family] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = {}
    for part in parts:
        for family in part:
            name = family["name"]
            families.setdefault(name, family)
            sums = values.setdefault(name, {})
            for sample, labels, value in family["samples"]:
                key = (sample, tuple(labels.items()))
                if family.get("peak"):
                    sums[key] = max(sums.get(key, value), value)
                else:
                    sums[key] = sums.get(key, 0.0) + value
    return [
        {**family, "samples": [(sample, dict(labels), value) for (sample, labels), value in values[name].items()]}
        for name, family in families.items()
    ]


def page(families: Iterable[Family]) -> str:
    """The families in Prometheus's text format, version 0.0.4."""
    lines: list[str] = []
    for family in families:
        name = family["name"] + ("_total" if family["kind"] == "counter" else "")
        lines += [f"# HELP {name} {family['help']}", f"# TYPE {name} {family['kind']}"]
        for sample, labels, value in family["samples"]:
            told = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
            number = f"{value:.0f}" if value == int(value) and abs(value) < 1e15 else repr(value)
            lines.append(f"{sample}{{{told}}} {number}" if told else f"{sample} {number}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# Fields of EngineStats: metric, kind, help.
_ENGINE: dict[str, tuple[str, str, str]] = {
    "waiting": ("oarlock_requests_waiting", "gauge", "Requests in the queue, preempted ones included."),
    "running": ("oarlock_requests_running", "gauge", "Requests in the batch."),
    "blocks": ("oarlock_kv_blocks", "gauge", "Size of the KV cache in blocks of 64 tokens."),
    "blocks_used": ("oarlock_kv_blocks_used", "gauge", "KV blocks held by running requests."),
    "blocks_cached": ("oarlock_kv_blocks_cached", "gauge", "Free KV blocks that still hold a reusable prefix."),
    "steps_total": ("oarlock_steps", "counter", "Steps of the engine."),
    "prompt_tokens_total": ("oarlock_prompt_tokens", "counter", "Tokens of admitted prompts, cached ones included."),
    "generation_tokens_total": ("oarlock_generation_tokens", "counter", "Tokens generated."),
    "computed_tokens_total": ("oarlock_computed_tokens", "counter", "Tokens that went through the model."),
    "prefix_queries_total": ("oarlock_prefix_cache_queries", "counter", "Prompt tokens looked up in the prefix cache."),
    "prefix_hits_total": ("oarlock_prefix_cache_hits", "counter", "Prompt tokens found in the prefix cache."),
    "preemptions_total": ("oarlock_preemptions", "counter", "Requests put back into the queue for lack of KV blocks."),
    "rejected_total": ("oarlock_requests_rejected", "counter", "Requests refused because the queue was full."),
    "failed_total": ("oarlock_requests_failed", "counter", "Requests that failed in the engine."),
    "step_seconds_total": ("oarlock_step_seconds", "counter", "Time in steps, from plan to committed result."),
    "executor_seconds_total": ("oarlock_executor_seconds", "counter", "Time of steps spent in the model's executor."),
    "bytes_read_total": ("oarlock_bytes_read", "counter", "Estimate of weight and KV bytes that steps had to read."),
    "last_step_seconds": ("oarlock_last_step_seconds", "gauge", "Time of the last step."),
}


def engine_families(stats: Mapping[str, Any], facts: Mapping[str, Any]) -> list[Family]:
    """The engine's part of the page: EngineStats and `floor_ratio` as a mapping, and `facts` that never change."""
    families: list[Family] = []
    for field, (name, kind, help) in _ENGINE.items():
        sample = name + ("_total" if kind == "counter" else "")
        families.append({"name": name, "kind": kind, "help": help, "samples": [(sample, {}, float(stats[field]))]})
    blocks = float(stats["blocks"]) or 1.0
    for name, help, value in (
        ("oarlock_kv_usage_ratio", "Share of the KV cache held by running requests.", stats["blocks_used"] / blocks),
        (
            "oarlock_floor_ratio",
            "Achieved over floor of the last steps: time to read their bytes at full bandwidth over time taken.",
            stats["floor_ratio"],
        ),
        ("oarlock_weight_bytes", "Memory held by the weights.", facts["weight_bytes"]),
        ("oarlock_kv_bytes", "Memory set aside for the KV cache.", facts["kv_bytes"]),
    ):
        families.append({"name": name, "kind": "gauge", "help": help, "samples": [(name, {}, float(value))]})
    return families
