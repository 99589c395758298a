"""What PaddleNLP's export wrote into a model's config.json, applied to the settings. Runs in the supervisor.

The keys override the environment, and limits are clamped to the length that the graph was exported for. A key that is
absent changes nothing.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import Settings, parse

_PREFIX = "infer_model_"
_NO_METHOD = (None, "", "None")


def read_config(settings: Settings) -> dict[str, Any]:
    """The config of an exported model; {} for any other model. SettingError when it can't be read."""
    path = Path(settings.model).expanduser() / settings.config_json_file
    try:
        text = path.read_text()
    except OSError:
        return {}  # a file of another container, or a directory that the reader will complain of
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}: not valid JSON: {error}") from None
    exported = isinstance(config, dict) and any(str(key).startswith(_PREFIX) for key in config)
    return config if exported else {}


def applied(settings: Settings, config: Mapping[str, Any], environ: Mapping[str, str]) -> tuple[Settings, list[str]]:
    """The settings that an exported model is served with, and warnings. SettingError names a key of a wrong type."""
    if not config:
        return settings, []
    changes: dict[str, Any] = {}
    warnings: list[str] = []
    length = _integer(config, "infer_model_max_seq_len")
    if length:
        changes |= _lengths(settings, length, warnings)
    block = _integer(config, "infer_model_block_size")
    if block:
        changes["block_size"] = block
    dtype = config.get("infer_model_dtype")
    if dtype is not None:
        wanted = parse("dtype", str(dtype), "config.json: infer_model_dtype")
        if (settings.device, wanted) in (("cpu", "f16"), ("cuda", "f32")):
            warnings.append(f"infer_model_dtype is {dtype}: computed in {settings.dtype} on this device")
        else:
            changes["dtype"] = wanted
    if config.get("infer_model_cachekv_int8_type") is not None:
        warnings.append("infer_model_cachekv_int8_type: not supported yet, the KV cache is held in the compute type")
    if config.get("speculate_method") not in _NO_METHOD:
        warnings.append(f"speculate_method is {config['speculate_method']}: not supported yet, served without it")
    tag, version = environ.get("tag", ""), str(config.get("paddlenlp_version") or "")
    if tag and version and tag not in version:
        warnings.append(f"the model was exported by PaddleNLP {version}, and tag is {tag}")
    sources = settings.sources | {name: "config.json" for name in changes}
    return replace(settings, **changes, sources=sources), warnings


def _lengths(settings: Settings, length: int, warnings: list[str]) -> dict[str, int]:
    """MAX_SEQ_LEN bounds prompts, a flag of ours the whole; the graph's own length bounds both."""
    of_prompts = settings.sources.get("max_context") == "MAX_SEQ_LEN"
    changes = {"max_context": length}
    if settings.max_context > length:
        warnings.append(f"MAX_SEQ_LEN={settings.max_context} is clamped to the model's {length}")
    elif settings.max_context and of_prompts:
        changes["max_prompt_tokens"] = settings.max_context
    elif settings.max_context:
        changes["max_context"] = settings.max_context
    if settings.max_output_tokens > length:
        warnings.append(f"MAX_DEC_LEN={settings.max_output_tokens} is clamped to the model's {length}")
        changes["max_output_tokens"] = length
    return changes


def _integer(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"config.json: {key} is {value!r}; it must be an integer of at least 1")
    return value
