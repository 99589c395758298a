"""What loading a model refuses before a step is run."""

from pathlib import Path
from typing import Any

import pytest
from support.tiny import tiny_checkpoint

from oarlock_runtime.engine import executor
from oarlock_runtime.engine.executor import ExecutorOptions, load_executor
from oarlock_runtime.errors import SettingError


@pytest.mark.parametrize(
    "wanted",
    [
        {"kv_blocks": 1 << 20},
        {"kv_memory": 1 << 44, "max_sequences": 4096},
        {"kv_blocks": 1 << 20, "kv_setting": "BLOCK_BS"},
    ],
)
def test_a_cache_that_the_machine_cannot_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any]
) -> None:
    monkeypatch.setattr(executor, "available_memory", lambda: 64 << 20)
    checkpoint = tiny_checkpoint(tmp_path, "llama")
    options = {"max_batched_tokens": 4096, "threads": 1, **wanted}
    name = wanted.get("kv_setting", next(iter(wanted)))
    with pytest.raises(SettingError, match=f"{name} asks for a KV cache of .* MiB; 64 MiB are free"):
        load_executor(checkpoint, ExecutorOptions(**options))


def test_a_cache_is_sized_from_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "available_memory", lambda: 8 << 20)
    options = ExecutorOptions(max_sequences=512, max_batched_tokens=512, kv_memory_share=0.25, threads=1)
    loaded = load_executor(tiny_checkpoint(tmp_path, "llama"), options)
    assert loaded.blocks == (2 << 20) // loaded.bytes_per_block
