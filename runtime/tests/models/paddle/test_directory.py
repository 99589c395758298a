"""Reading static-graph directories: every family, type, packing and number of ranks, and what is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.paddle_files import paddle_directory, pir_program, write_program
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.models.checkpoint import Checkpoint, open_checkpoint
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.inspect import report_on
from oarlock_runtime.models.loading import load_plan
from oarlock_runtime.models.paddle.parameters import read_records
from oarlock_runtime.models.paddle.parts import Parts, Scheme


def same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.spec == other.spec
    for name, ref in one.tensors():
        ours = other[name].read()
        assert ours.dtype == ref.read().dtype, name
        np.testing.assert_array_equal(ours, ref.read(), err_msg=name)


@pytest.mark.conformance(31, 32)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("pir", [True, False])
def test_every_bit_comes_back(tmp_path: Path, family: str, ranks: int, pir: bool) -> None:
    for dtype in ("bf16", "f16", "f32"):
        source = tiny_checkpoint(tmp_path, family, dtype)
        read = open_checkpoint(paddle_directory(tmp_path / dtype, source, ranks=ranks, pir=pir))
        assert (read.container, read.ranks) == ("paddle", ranks)
        same(source, read)


@pytest.mark.conformance(32)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("quant_type", ["weight_only_int8", "weight_only_int4"])
@pytest.mark.parametrize("group", [-1, 64, 128])
def test_quantized_matrices_keep_their_codes(tmp_path: Path, family: str, quant_type: str, group: int) -> None:
    source = tiny_checkpoint(tmp_path, family, "bf16")
    scheme = Scheme("f16", quant_type, group)
    first = open_checkpoint(paddle_directory(tmp_path / "sm75", source, scheme))
    volta = Scheme("f16", quant_type, group, "sm70")
    same(first, open_checkpoint(paddle_directory(tmp_path / "sm70", source, volta), "auto"))
    same(first, open_checkpoint(tmp_path / "sm70", "sm70"))
    kind = "q8_0" if scheme.bits == 8 else "q4_0"
    assert {first[f"layers.1.{part}"].format for part in ("q", "k", "v", "o", "gate", "up", "down")} == {kind}
    held = {weight.held for weight in load_plan(first) if weight.name.endswith(".qkv")}
    assert held == {"int8_groups" if scheme.bits == 8 else "int4_groups"}
    scale = np.abs(source["layers.0.gate"].dequantize()).max() / (127 if scheme.bits == 8 else 7)
    for part in ("q", "k", "v", "o", "gate", "up", "down"):
        ref = first[f"layers.0.{part}"]
        assert np.abs(ref.dequantize() - source[ref.name].dequantize()).max() < 0.51 * scale + 1e-3
        ref.release()


def test_ranks_that_quantized_their_own_shares_are_joined(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16")
    scheme = Scheme("bf16", "weight_only_int8")
    whole = open_checkpoint(paddle_directory(tmp_path / "one", source, scheme))
    shared = open_checkpoint(paddle_directory(tmp_path / "two", source, scheme, ranks=2))
    for part in ("q", "k", "v", "gate", "up"):  # cut along their outputs, which have a scale each
        np.testing.assert_array_equal(whole[f"layers.0.{part}"].read(), shared[f"layers.0.{part}"].read())
    parts = [dict(Parts(source, scheme, 2).of_rank(rank)) for rank in range(2)]
    scales = [part["fusellama.0.ffn2_weight_scale"] for part in parts]
    assert not np.array_equal(*scales)
    error = np.abs(shared["layers.0.down"].dequantize() - source["layers.0.down"].dequantize()).max()
    assert error < 0.51 / 127 * np.abs(source["layers.0.down"].dequantize()).max() * 1.01


def test_blocks_and_codes_say_the_same(tmp_path: Path) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    source = tiny_checkpoint(tmp_path, "llama", "bf16")
    for quant_type, kind in (
        ("weight_only_int8", GGMLQuantizationType.Q8_0),
        ("weight_only_int4", GGMLQuantizationType.Q4_0),
    ):
        directory = paddle_directory(tmp_path / quant_type, source, Scheme("bf16", quant_type, 64), ranks=2)
        for name, ref in open_checkpoint(directory).tensors():
            if ref.format in ("q8_0", "q4_0"):
                np.testing.assert_array_equal(dequantize(ref.read(), kind), ref.dequantize(), err_msg=name)


def test_other_names_of_the_ends(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16", tie_word_embeddings=False)
    arrays = dict(Parts(source, Scheme(), 1).of_rank(0))
    directory = paddle_directory(tmp_path / "out", source)
    renamed = dict(arrays)
    renamed["linear_0.w_0"] = renamed.pop("llama_lm_head_0.w_0")
    renamed["fused_rms_norm_0.w_0"] = renamed.pop("create_parameter_0.w_0")
    renamed["generated_tensor_0"] = np.zeros(7, np.float32)  # a constant that a graph may carry
    write_program(directory, renamed)
    same(source, open_checkpoint(directory))
    # A head that lies like the embedding, as tied ones are written out.
    renamed["llama_lm_head_0.w_0"] = np.ascontiguousarray(renamed.pop("linear_0.w_0").T)
    write_program(directory, renamed)
    same(source, open_checkpoint(directory))


def test_paddlenlps_own_keys_are_understood(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "qwen2", "bf16")
    directory = paddle_directory(
        tmp_path / "out",
        source,
        architectures=["Qwen2ForCausalLMBlockInferenceModel"],
        infer_model_max_seq_len=300,
        infer_model_cachekv_int8_type=None,
        quantization_config={"quant_type": None, "shift": False},
        quant_type="",
        num_layers=3,
        n_head=4,
        num_hidden_layers=None,
        num_attention_heads=None,
    )
    assert open_checkpoint(directory).spec.max_context == 300
    assert report_on(open_checkpoint(directory)).container == "paddle"


Change = Callable[[Path, dict[str, Any]], None]


def config_of(**values: Any) -> Change:
    def change(directory: Path, arrays: dict[str, Any]) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def arrays_of(**values: Any) -> Change:
    def change(directory: Path, arrays: dict[str, Any]) -> None:
        given = {name.replace("__", "."): value for name, value in values.items()}
        write_program(directory, {name: array for name, array in (arrays | given).items() if array is not None})

    return change


F16 = np.float16
REFUSED = [
    (config_of(model_type="mixtral"), r"config\.json: model_type: static graphs of mixtral .* are not supported yet"),
    (config_of(model_type="qwen2_moe"), "model_type: static graphs of qwen2_moe .*mixture of experts"),
    (config_of(model_type="deepseek_v3"), "model_type: static graphs of deepseek_v3 .* are not supported yet"),
    (config_of(quant_type="a8w8"), "quant_type: static graphs of a8w8 are not supported yet; supported"),
    (config_of(quantization_config={"quant_type": "a8w8_fp8"}), r"quantization_config\.quant_type: .* a8w8_fp8"),
    (config_of(infer_model_cachekv_int8_type="static"), r"infer_model_cachekv_int8_type: 'static': an 8-bit KV cache"),
    (config_of(intermediate_size=320), r"fusellama\.0\.ffn1_weight: is bf16 \[128, 512\], 131072 bytes; config"),
    (config_of(num_hidden_layers=2), r"fusellama\.2\.\w+: a llama model of 2 layers has no such parameter"),
    (config_of(num_hidden_layers=4), r"model\.pdiparams: parameter fusellama\.3\.qkv_weight is missing"),
    (config_of(vocab_size=77), r"0 parameters could be the embedding, of dimensions \[77, 128\]"),
    (arrays_of(fusellama__0__qkv_out_scale=np.zeros(4, np.float32)), r"0\.qkv_out_scale: .* activations \(a8w8\)"),
    (arrays_of(fusellama__1__cache_k_scale=np.zeros(4, np.float32)), r"1\.cache_k_scale: .* an 8-bit KV cache \(c8\)"),
    (arrays_of(fusellama__0__ffn1_0_weight=np.zeros((4, 4), F16)), r"ffn1_0_weight: .* 8-bit floats \(a8w8_fp8\)"),
    (arrays_of(fusemixtral__0__gate_weight=np.zeros((4, 4), F16)), r"fusemixtral\.0\.gate_weight: .* experts are not"),
    (arrays_of(fusellama__0__kv_b_proj_weight=np.zeros((4, 4), F16)), r"kv_b_proj_weight: .* latent attention"),
    (arrays_of(fusellama__0__qkv_bias=np.zeros(256, F16)), r"0\.qkv_bias: a llama model of 3 layers has no such"),
    (arrays_of(fusellama__0__ln_scale=None), r"model\.pdiparams: parameter fusellama\.0\.ln_scale is missing"),
    (arrays_of(fusellama__0__ln_scale=np.zeros(64, F16)), r"is f16 \[64\], 128 bytes; config.* for \[128\], 256"),
    (arrays_of(fusellama__0__ln_scale=np.zeros(128, np.int8)), "its element type i8 is not one of f32, f16, bf16"),
    (arrays_of(create_parameter_0__w_0=None), "0 parameters could be the last norm, of 128 values"),
    (arrays_of(another_norm=np.zeros(128, F16), a_norm=np.zeros(128, F16)), "3 parameters could be the last norm"),
    (arrays_of(head_a=np.zeros((128, 512), F16), head_b=np.zeros((128, 512), F16)), "which of them is the head can't"),
]  # fmt: skip


@pytest.mark.conformance(31, 32)
@pytest.mark.parametrize(("change", "problem"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_read_is_named(tmp_path: Path, change: Change, problem: str) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16")
    directory = paddle_directory(tmp_path / "out", source)
    change(directory, dict(Parts(source, Scheme(), 1).of_rank(0)))
    with pytest.raises(CheckpointError, match=problem):
        open_checkpoint(directory)


def test_quantized_matrices_that_do_not_fit_are_named(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16")
    scheme = Scheme("bf16", "weight_only_int4", 64)
    directory = paddle_directory(tmp_path / "out", source, scheme)
    arrays = dict(Parts(source, scheme, 1).of_rank(0))
    name = "fusellama.0.qkv_weight"
    for change, problem in [
        ({name + "_scale": np.zeros((5, 256), "u2")}, r"is bf16 .* expected are floats, \[256\]"),
        ({name: arrays[name][:64]}, r"is i8 \[64, 128\], 8192 bytes; config.json asks for \[128, 128\], 16384 bytes"),
        ({name: np.full((128, 128), -103, np.int8)}, "its packing can't be told from its codes; give --paddle-packing"),
    ]:  # fmt: skip
        write_program(directory, arrays | change)
        with pytest.raises(CheckpointError, match=rf"{name}\w*: {problem}"):
            open_checkpoint(directory)
    scales = np.full_like(arrays[name + "_scale"], 0x7F80)  # infinite
    write_program(directory, arrays | {name + "_scale": scales})
    with pytest.raises(CheckpointError, match=rf"{name}_scale: a scale is not a finite float16"):
        open_checkpoint(directory)["layers.0.q"].read()


def test_ranks_must_be_whole(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path, "llama", "bf16")
    directory = paddle_directory(tmp_path / "out", source, ranks=4)
    shutil.rmtree(directory / "rank_3")
    with pytest.raises(CheckpointError, match="has rank_0, rank_1, rank_2; expected are rank_0 to rank_3"):
        open_checkpoint(directory)
    (directory / "rank_3").mkdir()
    with pytest.raises(CheckpointError, match="rank_3: has no Paddle program"):
        open_checkpoint(directory)
    arrays = dict(Parts(source, Scheme(), 4).of_rank(3))
    write_program(directory / "rank_3", {name: array for name, array in arrays.items() if "2.ffn2" not in name})
    with pytest.raises(
        CheckpointError, match=r"rank_3/model\.pdiparams: parameter fusellama\.2\.ffn2_weight is missing"
    ):
        open_checkpoint(directory)
    write_program(directory / "rank_3", arrays | {"fusellama.2.ffn2_weight": np.zeros((64, 128), F16)})
    with pytest.raises(CheckpointError, match=r"rank_3/model\.pdiparams: .*ffn2_weight: is f16, but bf16 in .*rank_0"):
        open_checkpoint(directory)


@pytest.mark.conformance(31)
def test_records_are_held_against_the_program(tmp_path: Path) -> None:
    write_program(tmp_path, {"a": np.zeros((2, 3), np.float32), "b.10": np.ones(4, F16), "b.2": np.ones(5, F16)})
    assert [*read_records(tmp_path)] == ["a", "b.10", "b.2"]
    file = tmp_path / "model.pdiparams"
    good = file.read_bytes()
    program = tmp_path / "model.json"
    for content, problem in [
        (good[:-3], r"parameter b\.2: needs 10 bytes up to \d+, but the file has \d+; it is truncated"),
        (good[:30], r"parameter a: needs 24 bytes"),
        (good[:55], r"parameter b\.10: its record would begin at 50, but the file has 55 bytes"),
        (b"", "parameter a: its record would begin at 0, but the file has 0 bytes"),
        (good + b"\0", r"has \d+ bytes, but the 3 parameters of model\.json end at \d+"),
        (b"PK" + good[2:], "parameter a: no record begins at byte 0; the file is damaged"),
        (good[:21] + b"\x22" + good[22:], "parameter a: the file holds 34 .* unknown number of bytes, but model"),
        (good[:23] + b"\x07" + good[24:], r"parameter a: the file holds f32 \[7, 3\], 84 bytes, but .* \[2, 3\], 24"),
    ]:  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"model\.pdiparams: {problem}"):
            read_records(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.pdiparams: cannot be read: No such file"):
        read_records(tmp_path)
    file.write_bytes(good)
    for text, problem in [
        ("[" * 100_000, "nests too deeply"),
        ("{", "is not valid JSON"),
        ("[]", "has not the structure of a Paddle program"),
        ('{"base_code": {"magic": "png"}}', "base_code.magic is not 'pir'"),
        (json.dumps(pir_program([])), "declares no parameters"),
        (json.dumps(pir_program([("a", "f32", [2, -3])])), r"parameter a: dimensions \[2, -3\] are not positive"),
        (json.dumps(pir_program([("a", "f32", [1 << 70, 1 << 70])])), "parameter a: the file holds"),
        (json.dumps(pir_program([("a", "f32", [2, 3])] * 2)), "parameter 'a' is declared twice"),
        (json.dumps(pir_program([("a", "f9", [2, 3])])), "parameter a: its element type 'f9' is not known"),
        (json.dumps(pir_program([("a", "f32", {})])).replace("{}", "7"), "parameter 0 is malformed"),
    ]:  # fmt: skip
        program.write_text(text)
        with pytest.raises(CheckpointError, match=problem) as caught:
            read_records(tmp_path)
        assert str(tmp_path) in str(caught.value)


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    import os

    write_program(tmp_path, {"a": np.zeros(2, np.float32)})
    for name in ("model.pdiparams", "model.json"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)  # reading it would wait for ever
        with pytest.raises(CheckpointError, match=rf"{name}: is a pipe, not a file"):
            read_records(tmp_path)
