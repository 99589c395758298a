"""Static graphs that Paddle writes and runs: their weights come back bit for bit, their logits are ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.reference import Reference
from support.tiny import FAMILIES, tiny_checkpoint, tiny_gguf

from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.export import PaddleOptions, export_model
from oarlock_runtime.models.paddle.parameters import read_records
from oarlock_runtime.models.paddle.parts import Scheme
from oarlock_runtime.models.paddle.program import read_parameters
from oarlock_runtime.models.spec import rotary_frequencies
from oarlock_runtime.models.tokenizer import load_tokenizer

paddle: Any = pytest.importorskip("paddle", reason="needs the paddle extra")
TOLERANCE = 2e-4  # of logits between -15 and 15, both sides in float32


def export(checkpoint: Checkpoint, out: Path, ranks: int = 1, **scheme: Any) -> Path:
    export_model(checkpoint, out, "paddle", PaddleOptions(Scheme(**scheme), ranks))
    return out


def run(directory: Path, ids: list[list[int]]) -> Any:
    """Logits that Paddle computes from a directory's program and parameters."""
    graph = paddle.jit.load(str(directory / "model"))
    graph.eval()
    return graph(paddle.to_tensor(ids, dtype="int64")).numpy()


@pytest.mark.conformance(33)
@pytest.mark.parametrize("family", FAMILIES)
def test_paddle_computes_our_logits(tmp_path: Path, family: str) -> None:
    source = tiny_checkpoint(tmp_path, family)
    out = export(source, tmp_path / "out")
    ids = (
        np.random.default_rng(2).integers(0, 512, (2, 70)).tolist()
    )  # longer than the window of the family that has one
    logits = run(out, ids)
    reference = Reference.load(open_checkpoint(out))
    for row, text in zip(logits, ids, strict=True):
        np.testing.assert_allclose(row, reference.forward(text), atol=TOLERANCE)


@pytest.mark.conformance(32)
@pytest.mark.parametrize("packing", ["sm75", "sm70"])
@pytest.mark.parametrize(("quant_type", "group"), [("weight_only_int8", -1), ("weight_only_int4", 64)])
def test_paddle_computes_our_logits_of_quantized_weights(
    tmp_path: Path, packing: str, quant_type: str, group: int
) -> None:
    source = tiny_checkpoint(tmp_path, "qwen2", "bf16", num_hidden_layers=1)
    out = export(source, tmp_path / "out", quant_type=quant_type, group=group, packing=packing)
    ids = np.random.default_rng(2).integers(0, 512, 40).tolist()
    reference = Reference.load(open_checkpoint(out))
    np.testing.assert_allclose(run(out, [ids])[0], reference.forward(ids), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", "bf16"), ("mistral", "f16"), ("qwen2", "bf16"), ("qwen3", "f32")]
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_weights_go_to_paddle_and_back_bit_for_bit(tmp_path: Path, family: str, dtype: str, ranks: int) -> None:
    source = tiny_checkpoint(tmp_path, family, dtype, num_hidden_layers=2)
    out = export(source, tmp_path / "paddle", ranks)
    back = tmp_path / "back"
    export_model(open_checkpoint(out), back, "safetensors", PaddleOptions())
    files = [directory / "model.safetensors" for directory in (source.path, back)]
    from safetensors.numpy import load_file

    theirs, ours = (load_file(file) for file in files)
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        assert array.dtype == ours[name].dtype and array.tobytes() == ours[name].tobytes(), name
    assert open_checkpoint(back).spec == source.spec
    config, kept = (json.loads((directory / "config.json").read_text()) for directory in (source.path, back))
    assert {key: kept.get(key) for key in config} == config | {"torch_dtype": kept["torch_dtype"]}
    assert load_tokenizer(back).encode("round trip") == load_tokenizer(source.path).encode("round trip")


def test_a_quantized_gguf_becomes_bf16(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_gguf(tmp_path, "llama", "q8_0"))
    out = export(source, tmp_path / "out")
    read = open_checkpoint(out)
    assert read["layers.0.q"].format == "bf16" and read["layers.0.attn_norm"].format == "f32"
    assert (source.spec.rope.scaling, read.spec.rope.scaling) == ("divisors", "llama3")
    frequencies = (rotary_frequencies(one.spec) for one in (source, read))
    np.testing.assert_allclose(*frequencies, rtol=1e-5)
    for name, ref in source.tensors():
        np.testing.assert_allclose(read[name].dequantize(), ref.dequantize(), rtol=1 / 256)
    assert load_tokenizer(out).encode("hello") == load_tokenizer(source.path).encode("hello")


@pytest.mark.conformance(33)
def test_a_rank_has_its_share_and_the_collectives(tmp_path: Path) -> None:
    out = export(
        tiny_checkpoint(tmp_path, "qwen2", "bf16", tie_word_embeddings=False, num_hidden_layers=1), tmp_path / "out", 2
    )
    config = json.loads((out / "config.json").read_text())
    assert config["tensor_parallel_degree"] == 2 and config["paddlenlp_version"]
    assert {key for key in config if key.startswith("infer_model_")} >= {
        *("infer_model_block_size", "infer_model_max_seq_len", "infer_model_dtype", "infer_model_cachekv_int8_type"),
    }
    shapes = {name: record.parameter.dims for name, record in read_records(out / "rank_1").items()}
    assert shapes["fuseqwen2.0.qkv_weight"] == (128, 128) and shapes["fuseqwen2.0.qkv_bias"] == (128,)
    assert shapes["fuseqwen2.0.out_proj_weight"] == (64, 128) and shapes["fuseqwen2.0.ffn2_weight"] == (128, 128)
    assert shapes["fuseqwen2.0.ffn1_weight"] == (128, 256) and shapes["vocab_parallel_embedding_0.w_0"] == (256, 128)
    ops = json.loads((out / "rank_1" / "model.json").read_text())["program"]["regions"][0]["blocks"][0]["ops"]
    kinds = [op["#"] for op in ops]
    assert kinds.count("1.all_reduce") == 1 + 2 and "1.c_embedding" in kinds and kinds.count("1.all_gather") == 1


RANK = """
import sys, numpy as np, paddle
paddle.distributed.init_parallel_env()
rank, ids = paddle.distributed.get_rank(), paddle.to_tensor(np.load(sys.argv[1]))
for folder in sys.argv[2:]:
    logits = paddle.jit.load(f"{folder}/rank_{rank}/model")(ids).numpy()
    np.save(f"{folder}/logits_{rank}.npy", logits)
"""


@pytest.mark.conformance(33)
def test_ranks_that_paddle_launches_compute_our_logits(tmp_path: Path) -> None:
    ids = np.random.default_rng(2).integers(0, 512, (2, 30))
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "rank.py").write_text(RANK)
    folders = []
    for keys in (2, 1):  # one pair of keys and values is not shared out
        changes = {"num_hidden_layers": 2, "num_key_value_heads": keys, "tie_word_embeddings": keys == 2}
        source = tiny_checkpoint(tmp_path, "qwen2", seed=keys, **changes)
        folders.append(export(source, tmp_path / f"keys{keys}", 2))
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--backend", "gloo"]
    files = ["--log_dir", tmp_path / "log", tmp_path / "rank.py", tmp_path / "ids.npy", *folders]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, files)], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + "".join(
        log.read_text()[-2000:] for log in (tmp_path / "log").glob("workerlog.*")
    )
    for folder in folders:
        reference = Reference.load(open_checkpoint(folder))
        for rank in range(2):
            for row, text in zip(np.load(folder / f"logits_{rank}.npy"), ids.tolist(), strict=True):
                np.testing.assert_allclose(row, reference.forward(text), atol=TOLERANCE)


@pytest.mark.conformance(31)
def test_a_program_that_paddle_2_would_write_is_read(tmp_path: Path) -> None:
    kinds = {"a": "float32", "b.10": "bfloat16", "b.2": "float16", "c": "int8", "d": "float8_e4m3fn"}
    paddle.enable_static()
    try:
        with paddle.pir_utils.OldIrGuard():
            program = paddle.static.Program()
            block = program.global_block()
            block.create_var(name="input_ids", shape=[-1, -1], dtype="int64", is_data=True)
            for name, kind in kinds.items():
                block.create_var(name=name, shape=[3, 300], dtype=kind, persistable=True)
            feed = paddle.base.core.VarDesc.VarType.FEED_MINIBATCH
            block.create_var(name="feed", type=feed, persistable=True)
            (tmp_path / "model.pdmodel").write_bytes(program.desc.serialize_to_string())
    finally:
        paddle.disable_static()
    found = read_parameters(tmp_path / "model.pdmodel")
    assert [(parameter.name, parameter.dtype) for parameter in found] == [
        *(("a", "f32"), ("b.10", "bf16"), ("b.2", "f16"), ("c", "i8"), ("d", "f8e4m3fn")),
    ]
    assert {parameter.dims for parameter in found} == {(3, 300)}


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "f32")
    for options, problem in [
        ({"ranks": 3}, "4 attention heads can't be shared by 3 ranks"),
        ({"quant_type": "weight_only_int8"}, "has scales of 16 bits; give --dtype bf16 or f16"),
        (
            {"ranks": 4, "quant_type": "weight_only_int8", "dtype": "bf16"},
            "are no multiples of 64, which weight_only_int8",
        ),
    ]:
        with pytest.raises(CheckpointError, match=problem):
            export(source, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="out: exists already"):
        export(source, tmp_path / "out")
