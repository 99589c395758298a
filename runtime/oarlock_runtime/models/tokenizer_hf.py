"""Builds a tokenizer from a directory of Hugging Face or PaddleNLP: tokenizer.json, or else what older ones have.

Those are SentencePiece's or tiktoken's tokenizer.model, and vocab.json with merges.txt. Runs in the server process.
tokenizer_config.json and its companions add special tokens, chat_template.jinja or .json the chat template.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from oarlock_runtime.models.chat_template import ChatTemplate
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields, read_json
from oarlock_runtime.models.paddle.chat_template import template_source
from oarlock_runtime.models.tokenizer_pieces import from_piece_model
from oarlock_runtime.models.tokenizer_source import TokenizerSource, add_ends
from oarlock_runtime.models.tokenizer_vocab import MERGES, VOCAB, from_tiktoken, from_vocabulary, is_tiktoken

TOKENIZER = "tokenizer.json"
PIECE_MODELS = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model")
ADDED_TOKENS, SPECIAL_TOKENS = "added_tokens.json", "special_tokens_map.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TEMPLATE_FILE, PADDLE_TEMPLATE = "chat_template.jinja", "chat_template.json"
FILES = (
    *(TOKENIZER, TOKENIZER_CONFIG, TEMPLATE_FILE, PADDLE_TEMPLATE, *PIECE_MODELS, VOCAB, MERGES),
    *(ADDED_TOKENS, SPECIAL_TOKENS),
)


def from_directory(path: Path) -> TokenizerSource:
    """CheckpointError names the file that is missing or can't be used."""
    settings = _optional(path / TOKENIZER_CONFIG)
    config, generation = _optional(path / "config.json"), _optional(path / "generation_config.json")
    model = next((path / name for name in PIECE_MODELS if (path / name).exists()), None)
    if (path / TOKENIZER).exists():
        backend = _read_backend(path / TOKENIZER)
        byte_level, spaced = _style(path / TOKENIZER, backend)
    elif model is not None and not is_tiktoken(model):
        byte_level = False
        backend, spaced = _from_pieces(model, settings)
    elif model is not None:
        byte_level, spaced = True, False
        backend = _from_words(from_tiktoken(model, settings, config), path, settings)
    elif (path / VOCAB).exists() and (path / MERGES).exists():
        byte_level, spaced = True, False
        words = from_vocabulary(path / VOCAB, path / MERGES, settings, config)
        backend = _from_words(words, path, settings)
    else:
        models = " or ".join(PIECE_MODELS)
        raise CheckpointError(f"{path}: has no tokenizer: neither {TOKENIZER} nor {models} nor {VOCAB} with {MERGES}")
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
    backend, model = from_piece_model(file)
    _add_tokens(backend, file.parent, settings)
    bos = model.pieces.index("<s>") if "<s>" in model.pieces else None
    eos = model.pieces.index("</s>") if "</s>" in model.pieces else None
    add_ends(
        backend,
        bos if settings.flag("add_bos_token", True) else None,
        eos if settings.flag("add_eos_token", False) else None,
    )
    return backend, model.spaced


def _from_words(backend: Backend, path: Path, settings: Fields) -> Backend:
    """A byte-level backend with the tokens that were added to it, and those that go around a text."""
    _add_tokens(backend, path, settings)
    ends = (_token_text(settings, "bos_token"), _token_text(settings, "eos_token"))
    bos, eos = (backend.token_to_id(text) if text else None for text in ends)
    begins = settings.flag("add_bos_token", settings.text("tokenizer_class", "") == "Llama3Tokenizer")
    add_ends(backend, bos if begins else None, eos if settings.flag("add_eos_token", False) else None)
    return backend


def _add_tokens(backend: Backend, path: Path, settings: Fields) -> None:
    """The tokens that tokenizer_config.json or added_tokens.json add to a vocabulary, with the ids that these say."""
    added: dict[int, tuple[str, bool]] = {}
    special = set(_special_texts(path, settings))
    for text, token_id in _optional(path / ADDED_TOKENS).values.items():
        if not isinstance(token_id, int):
            raise CheckpointError(f"{path / ADDED_TOKENS}: {text}: {token_id!r:.40} is not a token id")
        added[token_id] = text, text in special
    decoder = settings.section("added_tokens_decoder")
    for key, token in decoder.values.items() if decoder else ():
        if not key.isdigit() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise settings.error("added_tokens_decoder", f"{key!r:.40} is not an id with a token's content")
        added[int(key)] = token["content"], bool(token.get("special"))
    for token_id, (text, is_special) in sorted(added.items()):
        token = AddedToken(text, special=is_special, normalized=False)
        (backend.add_special_tokens if is_special else backend.add_tokens)([token])
        if backend.token_to_id(text) != token_id:
            raise settings.error("added_tokens_decoder", f"token {token_id} doesn't follow the ones before it")


def _special_texts(path: Path, settings: Fields) -> Iterator[str]:
    """Texts of the tokens that are special by name."""
    for file in (_optional(path / SPECIAL_TOKENS), settings):
        for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
            yield _token_text(file, name)
        more = file.get("additional_special_tokens")
        for token in more if isinstance(more, list) else ():
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                yield text


def _template(path: Path, settings: Fields, constants: dict[str, str]) -> ChatTemplate | None:
    """chat_template.jinja or .json, or tokenizer_config.json's chat_template: one, or a list of named ones."""
    file = path / TEMPLATE_FILE
    if file.exists():
        return ChatTemplate(file.read_text(encoding="utf-8"), constants)
    if (path / PADDLE_TEMPLATE).exists():
        return ChatTemplate(template_source(read_json(path / PADDLE_TEMPLATE)), constants)
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
