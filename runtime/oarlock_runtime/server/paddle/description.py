"""The dialect's fields as a JSON schema, for the API's own description. Pure."""

from typing import Any

_TEXT, _FLAG = {"type": "string"}, {"type": "boolean"}
_COUNT = {"type": "integer", "minimum": 1}
_SEED = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 64) - 1}
_TEXTS = {"type": "array", "items": {"type": "string", "minLength": 1}}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_MESSAGE = {
    "type": "object",
    "properties": {"role": _TEXT, "content": _TEXT},
    "required": ["role", "content"],
}


def _range(low: float, high: float) -> dict[str, Any]:
    return {"type": "number", "minimum": low, "maximum": high}


FIELDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string", "minLength": 1},
    "input_ids": {**_IDS, "minItems": 1},
    "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
    "system": _TEXT,
    "req_id": {**_TEXT, "maxLength": 512},
    "max_dec_len": _COUNT,
    "seq_len": _COUNT,
    "max_tokens": _COUNT,
    "min_dec_len": _COUNT,
    "topp": _range(0, 1),
    "top_p": _range(0, 1),
    "temperature": _range(0, 100),
    "penalty_score": {**_range(0, 100), "exclusiveMinimum": 0},
    "frequency_score": _range(-2, 2),
    "presence_score": _range(-2, 2),
    "eos_token_ids": {**_IDS, "maxItems": 1},
    "stop_sequences": _TEXTS,
    "stop_seqs": _TEXTS,
    "infer_seed": _SEED,
    "seed": _SEED,
    "enable_text_truncate": {"type": "integer", "enum": [0, 1]},
    "response_type": {"type": "string", "enum": ["fastdeploy", "openai"]},
    "stream": _FLAG,
    "return_all_tokens": _FLAG,
    "return_usage": _FLAG,
    "benchmark": _FLAG,
    "timeout": {"type": "number", "exclusiveMinimum": 0},
    "model": _TEXT,
}

SCHEMA: dict[str, Any] = {
    "title": "PaddleFields",
    "description": "A request in PaddleNLP's own dialect: one of text, input_ids and messages, and no model unless a "
    "field of the dialect's own is there. Refusals are HTTP 200 with an error_code.",
    "type": "object",
    "properties": FIELDS,
    "anyOf": [{"required": [name]} for name in ("text", "input_ids", "messages")],
}
