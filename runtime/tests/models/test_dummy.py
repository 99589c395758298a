"""Weights that no file holds: seeded, of the right size and scale, and loaded like any others."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.tiny import FAMILIES, tiny_config

from oarlock_runtime import _C
from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.models.dummy import PERIOD, dummy_tokenizer, open_dummy
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.random import tensor_scale
from oarlock_runtime.models.spec import tensor_shapes


def directory(folder: Path, family: str) -> Path:
    (folder / "config.json").write_text(json.dumps(tiny_config(family).values))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_there(tmp_path: Path, family: str) -> None:
    checkpoint = open_dummy(directory(tmp_path, family))
    for name, shape in tensor_shapes(checkpoint.spec).items():
        values = checkpoint[name].dequantize()
        assert values.shape == shape
        if len(shape) == 2:
            assert np.std(values) == pytest.approx(tensor_scale(checkpoint.spec, name, shape), rel=0.05)
        else:
            assert (values == float(name.endswith("norm"))).all()


def test_a_seed_gives_the_same_weights() -> None:
    first, again, other = open_dummy("tiny-llama", 1), open_dummy("tiny-llama", 1), open_dummy("tiny-llama", 2)
    np.testing.assert_array_equal(first["layers.0.q"].read(), again["layers.0.q"].read())
    assert (first["layers.0.q"].read() != other["layers.0.q"].read()).mean() > 0.9
    assert (first["layers.0.q"].read() != first["layers.1.q"].read()).mean() > 0.9


def test_a_pool_repeats_itself() -> None:
    values = open_dummy("qwen2.5-0.5b")["embed"].read().reshape(-1)
    np.testing.assert_array_equal(values[: 1 << 16], values[PERIOD : PERIOD + (1 << 16)])


def test_it_loads_and_speaks(tmp_path: Path) -> None:
    folder = directory(tmp_path, "qwen2")
    options = ExecutorOptions(max_sequences=2, max_context=128, max_batched_tokens=64, kv_blocks=4, threads=1)
    assert load_executor(open_dummy(folder), options).blocks == 4
    tokenizer = dummy_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"


def test_what_is_no_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="presets are"):
        open_dummy(tmp_path / "none")


@pytest.mark.skipif("cuda" in _C.devices(), reason="this build has device cuda")
def test_a_device_that_was_not_built_in_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not in this build: install with"):
        load_executor(open_dummy("tiny-llama"), ExecutorOptions(device="cuda"))
