"""Builds a tokenizer from a Hugging Face directory: tokenizer.json, or else SentencePiece's tokenizer.model.

Runs in the server process. tokenizer_config.json and chat_template.jinja add the special tokens and the chat template.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from oarlock_runtime.models.chat_template import ChatTemplate
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields, read_json
from oarlock_runtime.models.sentencepiece_model import read_piece_model
from oarlock_runtime.models.tokenizer_gguf import add_special_tokens, piece_backend
from oarlock_runtime.models.tokenizer_source import TokenizerSource, add_ends

TOKENIZER = "tokenizer.json"
PIECE_MODEL = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"


def from_directory(path: Path) -> TokenizerSource:
    """CheckpointError names the file that is missing or can't be used."""
    settings = _optional(path / TOKENIZER_CONFIG)
    if (path / TOKENIZER).exists():
        backend = _read_backend(path / TOKENIZER)
        byte_level, spaced = _style(path / TOKENIZER, backend)
    elif (path / PIECE_MODEL).exists():
        byte_level = False
        backend, spaced = _from_pieces(path / PIECE_MODEL, settings)
    else:
        raise CheckpointError(f"{path}: has no tokenizer: neither {TOKENIZER} nor {PIECE_MODEL}")
    config, generation = _optional(path / "config.json"), _optional(path / "generation_config.json")
    constants = {name: _token_text(settings, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    bos = backend.token_to_id(constants["bos_token"]) if constants["bos_token"] else None
    eos = backend.token_to_id(constants["eos_token"]) if constants["eos_token"] else None
    ends = [*config.ids("eos_token_id"), *generation.ids("eos_token_id"), *([] if eos is None else [eos])]
    return TokenizerSource(
        backend=backend,
        byte_level=byte_level,
        spaced=spaced,
        bos_id=bos if bos is not None else next(iter(config.ids("bos_token_id")), None),
        eos_ids=tuple(dict.fromkeys(ends)),
        template=_template(path, settings, constants),
    )


def _read_backend(file: Path) -> Backend:
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises its base class
        raise CheckpointError(f"{file}: can't be read as a tokenizer: {error}") from error
    # A file may ask that texts be cut or padded to a length; a server never wants that.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _style(file: Path, backend: Backend) -> tuple[bool, bool]:
    """Whether tokens are byte-level (else SentencePiece), and whether a space is put before text."""
    decoders = _stages(backend.decoder, "decoders")
    kinds = [stage["type"] for stage in decoders]
    if "ByteLevel" in kinds:
        return True, False
    if not {"ByteFallback", "Metaspace"} & set(kinds):
        shown = ", ".join(kinds) or "none"
        raise CheckpointError(f"{file}: decoder: {shown} is not supported; supported are ByteLevel and SentencePiece's")
    before = [*_stages(backend.normalizer, "normalizers"), *_stages(backend.pre_tokenizer, "pretokenizers")]
    prepends = [stage for stage in before if stage["type"] in ("Prepend", "Metaspace")]
    return False, any(stage.get("prepend_scheme", "always") != "never" for stage in prepends)


def _stages(component: Any, list_name: str) -> list[dict[str, Any]]:
    """The JSON of a tokenizer's component, a sequence as its parts."""
    if component is None:
        return []
    stage = json.loads(component.__getstate__())
    return list(stage[list_name]) if stage["type"] == "Sequence" else [stage]


def _from_pieces(file: Path, settings: Fields) -> tuple[Backend, bool]:
    model = read_piece_model(file)
    backend = piece_backend(model.pieces, model.scores, model.types, model.spaced)
    add_special_tokens(backend, model.pieces, model.types)
    added = settings.section("added_tokens_decoder")
    for key, token in sorted(added.values.items(), key=lambda item: int(item[0])) if added else ():
        if int(key) < len(model.pieces):
            continue
        content = AddedToken(token["content"], special=bool(token.get("special")), normalized=False)
        (backend.add_special_tokens if token.get("special") else backend.add_tokens)([content])
        if backend.token_to_id(token["content"]) != int(key):
            raise settings.error("added_tokens_decoder", f"token {key} doesn't follow the ones before it")
    bos = model.pieces.index("<s>") if "<s>" in model.pieces else None
    eos = model.pieces.index("</s>") if "</s>" in model.pieces else None
    add_ends(
        backend,
        bos if settings.flag("add_bos_token", True) else None,
        eos if settings.flag("add_eos_token", False) else None,
    )
    return backend, model.spaced


def _template(path: Path, settings: Fields, constants: dict[str, str]) -> ChatTemplate | None:
    """chat_template.jinja, or tokenizer_config.json's chat_template: one, or a list of named ones."""
    file = path / TEMPLATE_FILE
    if file.exists():
        return ChatTemplate(file.read_text(encoding="utf-8"), constants)
    found = settings.get("chat_template")
    if found is None:
        return None
    if isinstance(found, str):
        return ChatTemplate(found, constants)
    try:
        named = {entry["name"]: entry["template"] for entry in found}
        return ChatTemplate(named["default"], constants, named.get("tool_use"))
    except (KeyError, TypeError) as error:
        raise settings.error("chat_template", "is neither a string nor a list with one named default") from error


def _token_text(settings: Fields, name: str) -> str:
    value = settings.get(name)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _optional(file: Path) -> Fields:
    return read_json(file) if file.exists() else Fields(file, {})
