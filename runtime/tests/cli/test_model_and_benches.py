"""Commands on a tiny random model: it is written, inspected, and run through every bench in process."""

import json
from pathlib import Path

import numpy as np
import pytest

from oarlock_runtime.cli.bench import floor, inprocess, steps
from oarlock_runtime.cli.bench.load import Load, arrivals_of
from oarlock_runtime.cli.dispatch import main


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    assert main(["model", "random", "tiny-llama", "--to", "gguf", "-o", str(path), "--seed", "3"]) == 0
    return path


def test_inspect_tells_what_a_model_is(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tiny), "--quantization", "int8"]) == 0
    printed = capsys.readouterr().out
    assert "family" in printed and "llama" in printed and "tied embeddings" in printed
    assert "layers.*.qkv" in printed and "int8" in printed


def test_inspect_advises_paddles_settings(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--average-in", "300", "--average-out", "1500", "--context", "128", "--kv-memory", "1MiB"]
    assert main(["model", "inspect", str(tiny), "--paddle", *lengths]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("MAX_SEQ_LEN=128 BLOCK_BS=") and " BLOCK_RATIO=0.24 BATCH_SIZE=" in last


def test_download_of_a_path_prints_it(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", str(tiny)]) == 0
    assert capsys.readouterr().out == f"{tiny}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["model"],
        ["model", "inspct", "x"],
        ["model", "random", "tiny-llama"],
        ["model", "inspect", "x", "--dtype", "f8"],
    ],
)
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "inspect", str(tmp_path / "none.gguf")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("oarlock: ") and "none.gguf" in error and error.count("\n") == 1


def test_steps_are_built_as_the_core_takes_them(tiny: Path) -> None:
    plan = steps.step_plan(512, 2, 3, 70)
    assert plan.positions.tolist() == [67, 68, 69] * 2
    assert plan.slots.tolist() == [67, 68, 69, 195, 196, 197]
    assert plan.sample_rows.tolist() == [2, 5]
    assert plan.context_lens.tolist() == [70, 70]
    assert plan.block_tables.dtype == np.int32


@pytest.mark.parametrize("form", [[], ["--rate", "200", "--requests", "6", "--spread", "0.4"]])
def test_serving_in_process(tiny: Path, tmp_path: Path, form: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--model", str(tiny), "--input", "9", "--output", "5", "--repeats", "2", "--concurrency", "1,3"]
    ids = ["--first-id", "5", "--last-id", "500", "--quantization", "bf16,int8", "--json", str(tmp_path / "out.json")]
    assert main([*words, *ids, *form]) == 0
    assert "in process, int8" in capsys.readouterr().out
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert len(results) == (2 if form else 4)
    assert all(run["failed"] == run["short"] == 0 for result in results for run in result["runs"])


def test_decode_and_prefill(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(steps, "BANDWIDTH_SECONDS", 0.01)
    monkeypatch.setattr(steps, "RATE_SECONDS", 0.01)
    out = tmp_path / "out.json"
    words = ["--model", str(tiny), "--quantization", "auto,int4", "--json", str(out)]
    assert main(["bench", "decode", *words, "--batch", "1,3", "--context", "70", "--steps", "3"]) == 0
    assert [row["batch"] for row in json.loads(out.read_text())["results"]] == [1, 3, 1, 3]
    assert main(["bench", "prefill", *words, "--tokens", "7,100", "--repeats", "2"]) == 0
    assert [row["tokens"] for row in json.loads(out.read_text())["results"]] == [7, 100, 7, 100]
    assert "floor" in capsys.readouterr().out


def test_ranks_beside_the_whole_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = ["--model", str(tiny), "--batch", "1,3", "--context", "70", "--steps", "2", "--rounds", "2"]
    assert main(["bench", "ranks", *words, "--threads", "2", "--json", str(out)]) == 0
    assert "2 ranks with 1 each" in capsys.readouterr().err
    results = json.loads(out.read_text())["results"]
    assert [row["batch"] for row in results] == [1, 3]
    assert all(row["exchanges"] > 0 and 0 < row["share"] < 1 for row in results)


def test_ranks_share_the_threads_evenly(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ranks", "--model", str(tiny), "--ranks", "2", "--threads", "3"]) == 2
    assert "--threads 3 can't be shared evenly by --ranks 2" in capsys.readouterr().err


def test_floor_of_the_machine_and_a_model(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "floor", "--seconds", "0.01", "--repeats", "1", "--threads", "1", "--model", str(tiny)]) == 0
    printed = capsys.readouterr().out
    assert "read GB/s" in printed and "tok/s, batch 1" in printed


def test_prefill_operations_count_the_last_row_of_the_head_alone(tiny: Path) -> None:
    spec = inprocess.checkpoint_of(str(tiny)).spec
    one, two = floor.prefill_operations(spec, 1), floor.prefill_operations(spec, 2)
    attention = 4 * spec.layers * spec.heads * spec.head_dim
    assert two - one == 2 * floor.matrix_weights(spec) + 2 * attention
    assert one == 2 * (floor.matrix_weights(spec) + spec.hidden * spec.vocab) + attention


def test_the_cost_of_a_streamed_token_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = ["--streams", "1,3", "--tokens", "20", "--step", "1", "--json", str(out)]
    assert main(["bench", "front", *words]) == 0
    assert "us a token" in capsys.readouterr().out
    results = json.loads(out.read_text())["results"]
    assert [cost["streams"] for cost in results] == [1, 3]
    assert all(cost["tokens"] >= 20 * cost["streams"] and cost["microseconds"] > 0 for cost in results)


def test_host_work_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "host", "--sequences", "2", "--steps", "5"]) == 0
    assert "budget" in capsys.readouterr().out


def test_arrivals_are_poisson_only_with_a_rate() -> None:
    assert arrivals_of(Load(4), 5, "s") == []
    times = arrivals_of(Load(rate=10.0), 500, "s")
    assert times[0] == 0.0 and times == sorted(times)
    assert 35 < times[-1] < 65
