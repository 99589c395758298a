"""One page out of several processes' families, readable by Prometheus's own parser."""

import math

from prometheus_client.parser import text_string_to_metric_families

from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.server.metrics import Family, engine_families, merge, page
from oarlock_runtime.server.server_metrics import ServerMetrics


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_counters_and_histograms_of_processes_add_up() -> None:
    servers = [ServerMetrics(), ServerMetrics()]
    for server in servers:
        server.count("chat", "200")
        server.first_token(0.003)
        server.finished(["stop", "length"], 12, 1.5, 0.0)
    servers[0].count("chat", "400")
    servers[0].token_time(1.0, 2.0, 11)
    found = samples(page(merge(server.families(1) for server in servers)))
    assert found["oarlock_requests_total", (("endpoint", "chat"), ("outcome", "200"))] == 2
    assert found["oarlock_requests_total", (("endpoint", "chat"), ("outcome", "400"))] == 1
    assert found["oarlock_time_to_first_token_seconds_bucket", (("le", "0.0025"),)] == 0
    assert found["oarlock_time_to_first_token_seconds_bucket", (("le", "0.005"),)] == 2
    assert found["oarlock_time_to_first_token_seconds_count", ()] == 2
    assert math.isclose(found["oarlock_time_per_output_token_seconds_sum", ()], 0.1)
    assert found["oarlock_choices_finished_total", (("reason", "stop"),)] == 2
    assert found["oarlock_calls_open", ()] == 2


def test_the_engines_counters_are_all_there_with_help() -> None:
    stats = EngineStats(blocks=100, blocks_used=25, steps_total=7, step_seconds_total=0.25)
    told = {name: getattr(stats, name) for name in EngineStats.__struct_fields__} | {"floor_ratio": 0.8}
    text = page(engine_families(told, {"weight_bytes": 10, "kv_bytes": 20}))
    found = samples(text)
    assert found["oarlock_kv_usage_ratio", ()] == 0.25
    assert found["oarlock_steps_total", ()] == 7
    assert found["oarlock_step_seconds_total", ()] == 0.25
    assert found["oarlock_floor_ratio", ()] == 0.8
    assert text.count("# HELP") == len(found)


def test_labels_are_escaped() -> None:
    family: Family = {"name": "a", "kind": "gauge", "help": "h", "samples": [("a", {"x": 'q"\\\n'}, 0.5)]}
    assert samples(page([family])) == {("a", (("x", 'q"\\\n'),)): 0.5}
