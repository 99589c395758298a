"""A tokenizer for a model that has none: one made on the spot, or borrowed from another model.

Runs in the command line, for `oarlock model random`. Both come as a GGUF header's `tokenizer.*` values, from which
either container's files are written.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

from oarlock_runtime.models.checkpoint import model_file
from oarlock_runtime.models.detokenizer import CHARACTER_OF_BYTE
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.gguf_header import LazyStrings, read_header
from oarlock_runtime.models.pretokenizers import BPE_STYLES
from oarlock_runtime.models.tensors import MappedFile
from oarlock_runtime.models.tokenizer_gguf import (
    CONTROL,
    NORMAL,
    PREFIX,
    UNUSED,
    USER_DEFINED,
    from_metadata,
)
from oarlock_runtime.models.tokenizer_hf import FILES, TOKENIZER, TOKENIZER_CONFIG, from_directory

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SMALLEST_VOCAB = len(SPECIAL) + 256
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def made_tokenizer(vocab: int) -> dict[str, Any]:
    """A byte-level tokenizer of `vocab` tokens: the bytes, pairs of letters, unused ones; ChatML as its template."""
    if vocab < SMALLEST_VOCAB:
        raise CheckpointError(f"vocab_size: {vocab} is too small for a tokenizer; the least is {SMALLEST_VOCAB}")
    letters = ["\u0120", *map(chr, range(ord("a"), ord("z") + 1))]  # U+0120 is the space
    pairs = list(itertools.product(letters, letters[1:]))[: vocab - SMALLEST_VOCAB]
    tokens = [*SPECIAL, *(CHARACTER_OF_BYTE[byte] for byte in range(256)), *(left + right for left, right in pairs)]
    return _padded(
        {
            PREFIX + "model": "gpt2",
            PREFIX + "pre": "gpt-2",
            PREFIX + "tokens": tokens,
            PREFIX + "token_type": [CONTROL] * len(SPECIAL) + [NORMAL] * (len(tokens) - len(SPECIAL)),
            # A GGUF must have merges; the smallest vocabulary has one that leads nowhere new.
            PREFIX + "merges": [f"{left} {right}" for left, right in pairs],
            PREFIX + "bos_token_id": 0,
            PREFIX + "eos_token_id": 2,
            PREFIX + "add_bos_token": False,
            "tokenizer.chat_template": CHAT_TEMPLATE,
        },
        vocab,
    )


def borrowed_tokenizer(path: Path, vocab: int) -> dict[str, Any]:
    """The tokenizer of the model at `path`, filled up with unused tokens to `vocab`."""
    path = model_file(path)
    if path.is_dir():
        return _padded(_metadata_of_directory(path), vocab)
    header = Fields(path, read_header(MappedFile(path)).values)
    values = {}
    for key, value in header.values.items():
        if key.startswith("tokenizer."):
            values[key] = value.values() if isinstance(value, LazyStrings) else value
            if hasattr(value, "tolist"):
                values[key] = value.tolist()
    return _padded(values, vocab)


def write_tokenizer(directory: Path, values: dict[str, Any]) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    source = from_metadata(Fields(directory, values))
    source.backend.save(str(directory / TOKENIZER))
    tokens = values[PREFIX + "tokens"]
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos", "eos"):
        token_id = values.get(f"{PREFIX}{name}_token_id")
        if token_id is not None:
            config[f"{name}_token"] = tokens[token_id]
    if "tokenizer.chat_template" in values:
        config["chat_template"] = values["tokenizer.chat_template"]
    (directory / TOKENIZER_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def copy_tokenizer(source: Path, directory: Path) -> None:
    """Copies a Hugging Face directory's tokenizer files."""
    for name in FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)


def _padded(values: dict[str, Any], vocab: int) -> dict[str, Any]:
    tokens = values[PREFIX + "tokens"]
    if len(tokens) > vocab:
        raise CheckpointError(f"the tokenizer has {len(tokens)} tokens; the model's vocab_size is {vocab}")
    extra = [f"[PAD{token_id}]" for token_id in range(len(tokens), vocab)]
    types = values.get(PREFIX + "token_type") or [NORMAL] * len(tokens)
    padded = values | {PREFIX + "tokens": tokens + extra, PREFIX + "token_type": types + [UNUSED] * len(extra)}
    if PREFIX + "scores" in values:
        padded[PREFIX + "scores"] = values[PREFIX + "scores"] + [-1000.0] * len(extra)
    return padded


def _metadata_of_directory(path: Path) -> dict[str, Any]:
    """A Hugging Face byte-level BPE tokenizer as GGUF metadata. Others can only be copied as they are."""
    source = from_directory(path)
    model = json.loads(source.backend.model.__getstate__())
    if not source.byte_level or model["type"] != "BPE":
        raise CheckpointError(f"{path}: only byte-level BPE can be written into a GGUF; borrow from a GGUF instead")
    splits = source.backend.pre_tokenizer.__getstate__()
    name = next((name for name, style in BPE_STYLES.items() if style.split().__getstate__() == splits), None)
    if name is None:
        raise CheckpointError(f"{path / TOKENIZER}: GGUF has no name for its pre_tokenizer")
    vocab = source.backend.get_vocab(with_added_tokens=True)
    added = source.backend.get_added_tokens_decoder()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    types = [NORMAL] * len(tokens)
    for token_id, token in added.items():
        types[token_id] = CONTROL if token.special else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    values: dict[str, Any] = {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": name,
        PREFIX + "tokens": tokens,
        PREFIX + "token_type": types,
        PREFIX + "merges": merges,
        PREFIX + "add_bos_token": len(source.backend.encode("").ids) > 0,
    }
    if source.bos_id is not None:
        values[PREFIX + "bos_token_id"] = source.bos_id
    if source.eos_ids:
        values[PREFIX + "eos_token_id"] = source.eos_ids[0]
    if source.template is not None:
        values["tokenizer.chat_template"] = source.template.source
    return values
