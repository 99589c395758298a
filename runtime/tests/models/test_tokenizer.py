"""Tokenizers from GGUF metadata and from Hugging Face directories; detokenizing as tokens come."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support import plain_bpe
from support.tiny import tiny_directory, tiny_gguf

from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.detokenizer import BYTE_OF_CHARACTER, CHARACTER_OF_BYTE
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields
from oarlock_runtime.models.gguf_header import read_header
from oarlock_runtime.models.pretokenizers import BPE_STYLES
from oarlock_runtime.models.random_tokenizer import borrowed_tokenizer, made_tokenizer, write_tokenizer
from oarlock_runtime.models.tensors import MappedFile
from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer
from oarlock_runtime.models.tokenizer_gguf import PREFIX, from_metadata, string_list

TRICKY = [
    "Hello, world! I'm here; you're there, they'll've gone. IT'S DON'T",
    "12345 + 678.90 = 13023.90 \u00bd \u00b2 \u0663 \u216b",
    "  leading, trailing  \n\n\n\ttabs\t\tand   runs\r\n",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3002",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0639\u0631\u0628\u0649 \ud55c\uad6d\uc5b4",
    "\U0001f917\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301\u00e9 \ufb01 \u00a0\u2003\u3000x\u200b",
    "def f(x):\n    return x ** 2  # squared\n\n\nclass A:\n\tpass\n",
    "<|im_start|>user\nhi<|im_end|>\n<|im_st",
    "\x00\x1c\x1d control \x7f\x85",
    "",
    " ",
    "\n",
]


@pytest.fixture(scope="module")
def smol(smollm2: Path) -> Tokenizer:
    return load_tokenizer(smollm2)


@pytest.fixture(scope="module")
def plain(smollm2: Path, smol: Tokenizer) -> Any:
    fields = Fields(smollm2, read_header(MappedFile(smollm2)).values)
    vocab = {token: at for at, token in enumerate(string_list(fields, PREFIX + "tokens"))}
    pairs = (merge.split(" ") for merge in string_list(fields, PREFIX + "merges"))
    ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}
    special = [smol.token_text(at) for at in smol.special_ids]
    return lambda text: plain_bpe.encode(text, vocab, ranks, special)


@pytest.mark.parametrize("text", TRICKY)
def test_smollm2_tokenizes_as_its_rules_say(smol: Tokenizer, plain: Any, text: str) -> None:
    ids = smol.encode(text)
    assert ids == plain(text)
    assert smol.decode(ids, skip_special=False) == known(smol, text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60))
def test_any_text_tokenizes_as_the_rules_say(smol: Tokenizer, plain: Any, text: str) -> None:
    assert smol.encode(text) == plain(text)
    assert smol.decode(smol.encode(text), skip_special=False) == known(smol, text)


def known(tokenizer: Tokenizer, text: str) -> str:
    """The text without the bytes that are no tokens."""
    tokens = (CHARACTER_OF_BYTE[byte] for byte in text.encode())
    return bytes(BYTE_OF_CHARACTER[token] for token in tokens if tokenizer.token_id(token) is not None).decode(
        "utf-8", "replace"
    )


def test_what_smollm2_says_of_itself(smol: Tokenizer) -> None:
    assert (smol.vocab_size, smol.bos_id, smol.eos_ids, len(smol.special_ids)) == (49152, 1, (2, 0), 17)
    assert smol.token_id("<|im_end|>") == 2
    assert smol.token_id("no such token") is None
    assert smol.encode("1234") == [33, 34, 35, 36]
    assert smol.render_chat([{"role": "user", "content": "Hi"}]).endswith(
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_lone_surrogates_are_refused_by_field(smol: Tokenizer) -> None:
    with pytest.raises(RequestError, match="not valid unicode") as caught:
        smol.encode("a\ud800b", field="messages[0].content")
    assert caught.value.field == "messages[0].content"


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(-2, 49160), max_size=80), cuts=st.lists(st.integers(1, 5)), skip=st.booleans())
def test_a_stream_joins_to_the_text_decoded_at_once(
    smol: Tokenizer, ids: list[int], cuts: list[int], skip: bool
) -> None:
    check_stream(smol, ids, cuts, skip)


def check_stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int], skip: bool, start: bool = False) -> None:
    whole = tokenizer.decode(ids, skip_special=skip, start=start)
    spelled = b"".join(tokenizer.token_bytes(at) for at in ids if not (skip and at in tokenizer.special_ids))
    text = spelled.decode("utf-8", "replace")
    assert whole == (text.removeprefix(" ") if start and tokenizer.spaced else text)
    stream = tokenizer.stream(skip, start)
    parts, at = [], 0
    for size in [*cuts, len(ids)]:
        parts.append(stream.push(ids[at : at + size]))
        at += size
    assert "".join(parts) + stream.flush() == whole


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_a_stream_of_valid_text_never_shows_half_a_character(smol: Tokenizer, text: str) -> None:
    assume(known(smol, text) == text)
    stream, shown = smol.stream(skip_special=False), ""
    for token_id in smol.encode(text):
        shown += stream.push([token_id])
        assert text.startswith(shown)
    assert shown == text and stream.flush() == ""


@pytest.mark.parametrize("style", BPE_STYLES)
def test_every_pretokenizer_keeps_every_character(style: str) -> None:
    values = made_tokenizer(1000) | {PREFIX + "pre": style}
    tokenizer = Tokenizer(from_metadata(Fields(Path("made"), values)))
    for text in TRICKY:
        if not BPE_STYLES[style].compose:
            assert tokenizer.decode(tokenizer.encode(text, add_special=False), skip_special=False) == text
    has_bos = tokenizer.encode("x")[0] == 0
    assert not has_bos  # the header says so, whatever the style's habit
    del values[PREFIX + "add_bos_token"]
    tokenizer = Tokenizer(from_metadata(Fields(Path("made"), values)))
    assert (tokenizer.encode("x")[0] == 0) == BPE_STYLES[style].add_bos


@pytest.mark.parametrize(
    ("style", "text", "words"),
    [
        ("llama-bpe", "I'LL pay 12345 (now)\n\n x", ["I", "'LL", " pay", " ", "123", "45", " (", "now", ")\n\n", " x"]),
        ("qwen2", "I'll pay 123 (now)\n", ["I", "'ll", " pay", " ", "1", "2", "3", " (", "now", ")\n"]),
        ("gpt-2", "I'll pay 123 (now)", ["I", "'ll", " pay", " 123", " (", "now", ")"]),
        ("smollm", "pay 123  x", ["pay", " ", "1", "2", "3", " ", " x"]),
        ("tekken", "CamelCase 12", ["Camel", "Case", " ", "1", "2"]),
    ],
)
def test_words_are_cut_as_each_model_does(style: str, text: str, words: list[str]) -> None:
    cut = BPE_STYLES[style].split().pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in cut] == words


def test_the_same_tokenizer_through_every_container(tmp_path: Path, smollm2: Path, smol: Tokenizer) -> None:
    values = borrowed_tokenizer(smollm2, 49152)
    write_tokenizer(tmp_path, values)
    (tmp_path / "config.json").write_text("{}")
    again = load_tokenizer(tmp_path)
    assert (again.byte_level, again.bos_id, again.special_ids) == (True, 1, smol.special_ids)
    for text in TRICKY:
        assert again.encode(text) == smol.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert again.render_chat(messages) == smol.render_chat(messages)
    back = borrowed_tokenizer(tmp_path, 49152)
    assert back[PREFIX + "pre"] in ("smollm", "starcoder", "refact", "codeshell")
    assert back[PREFIX + "tokens"] == values[PREFIX + "tokens"]
    assert back[PREFIX + "merges"] == values[PREFIX + "merges"]


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
WORDS = ["\u2581", "t", "h", "e", "c", "a", "\u2581t", "he", "\u2581the", "at", "cat", "\u2581c", "\u2581cat"]


def piece_values(**more: Any) -> dict[str, Any]:
    return {
        PREFIX + "model": "llama",
        PREFIX + "tokens": PIECES + WORDS,
        PREFIX + "scores": [0.0] * len(PIECES) + [-float(10 - len(word)) for word in WORDS],
        PREFIX + "token_type": [2, 3, 3] + [6] * 256 + [1] * len(WORDS),
        PREFIX + "bos_token_id": 1,
        PREFIX + "eos_token_id": 2,
        **more,
    }


def test_sentencepiece_from_gguf() -> None:
    tokenizer = Tokenizer(from_metadata(Fields(Path("made"), piece_values())))
    texts = [tokenizer.token_text(at) for at in tokenizer.encode("the cat\u00e9")]
    assert texts[:3] == ["<s>", " the", " cat"]
    assert tokenizer.decode(tokenizer.encode("the cat\u00e9\n")) == " the cat\u00e9\n"
    assert tokenizer.decode(tokenizer.encode("the cat\u00e9\n"), start=True) == "the cat\u00e9\n"
    assert tokenizer.eos_ids == (2,)
    bare = Tokenizer(from_metadata(Fields(Path("made"), piece_values(**{PREFIX + "add_space_prefix": False}))))
    assert bare.token_text(bare.encode("the", add_special=False)[-1]) == "he"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, len(PIECES) + len(WORDS)), max_size=40), st.booleans(), st.booleans())
def test_sentencepiece_streams_join(ids: list[int], skip: bool, start: bool) -> None:
    tokenizer = Tokenizer(from_metadata(Fields(Path("made"), piece_values())))
    check_stream(tokenizer, ids, [1] * len(ids), skip, start)


def message(*fields: tuple[int, Any]) -> bytes:
    """A protocol buffer of small fields."""
    out = b""
    for number, value in fields:
        if isinstance(value, bytes):
            size = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
            out += bytes([number << 3 | 2]) + size + value
        elif isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        else:
            out += bytes([number << 3, value])
    return out


def test_a_sentencepiece_model_is_read(tmp_path: Path) -> None:
    values = piece_values()
    pieces = zip(values[PREFIX + "tokens"], values[PREFIX + "scores"], values[PREFIX + "token_type"], strict=True)
    content = b"".join(
        message((1, message((1, piece.encode()), (2, float(score)), (3, kind)))) for piece, score, kind in pieces
    )
    (tmp_path / "tokenizer.model").write_bytes(content + message((2, message((3, 2))), (3, message((3, 1)))))
    (tmp_path / "config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": {"content": "<s>"},
                "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
                "added_tokens_decoder": {str(len(PIECES + WORDS)): {"content": "<tool>", "special": True}},
            }
        )
    )
    tokenizer = load_tokenizer(tmp_path)
    from_header = Tokenizer(from_metadata(Fields(Path("made"), values)))
    assert tokenizer.encode("the cat\u00e9") == from_header.encode("the cat\u00e9")
    assert tokenizer.encode("<tool>")[-1] == len(PIECES + WORDS)
    assert tokenizer.render_chat([{"role": "user", "content": "x"}]) == "<s>x"
    (tmp_path / "tokenizer.model").write_bytes(content + message((2, message((3, 3)))))
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: word models are not supported"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: is damaged"):
        load_tokenizer(tmp_path)


def test_tokenizer_files_that_are_missing_or_foreign_are_named(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path, "llama")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: can't be read as a tokenizer"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").write_text('{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: decoder: none is not supported"):
        load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer: neither tokenizer\.json nor tokenizer\.model"):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model: 'bert' is not supported; supported are gpt2, llama"),
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre: 'unheard-of' is not supported; supported are smollm"),
        ({"tokens": None}, "tokenizer.ggml.tokens: missing"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type: is not a list of 300"),
        ({"eos_token_id": 300}, "tokenizer.ggml.eos_token_id: 300 is not below 300"),
        ({"merges": ["a nothing"]}, "tokenizer.ggml.merges: "),
    ],
)
def test_header_fields_that_do_not_fit_are_named(change: dict[str, Any], problem: str) -> None:
    values = made_tokenizer(300) | {PREFIX + key: value for key, value in change.items()}
    with pytest.raises(CheckpointError, match=f"^made: {problem}"):
        from_metadata(Fields(Path("made"), values))


def test_a_template_file_goes_before_the_config(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path, "qwen2")
    (directory / "chat_template.jinja").write_text("file")
    assert load_tokenizer(directory).render_chat([]) == "file"
    copied = tmp_path / "named"
    shutil.copytree(directory, copied)
    (copied / "chat_template.jinja").unlink()
    config = json.loads((copied / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(copied)
    assert (tokenizer.render_chat([]), tokenizer.render_chat([], tools=[{}])) == ("plain", "tools")
    del config["chat_template"]
    (copied / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="no chat template") as caught:
        load_tokenizer(copied).render_chat([])
    assert caught.value.field == "messages"


def test_a_tiny_ggufs_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_gguf(tmp_path, "qwen3"))
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode(tokenizer.encode("the cat")) == "the cat"
