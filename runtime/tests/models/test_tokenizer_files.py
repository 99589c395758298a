"""Tokenizers from the files of older directories, each held against the library that made them."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, normalizers, trainers
from tokenizers.models import BPE

from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.pretokenizers import BPE_STYLES
from oarlock_runtime.models.tokenizer import Tokenizer, load_tokenizer

SENTENCES = [
    "The capital of France is Paris, and the river there is the Seine.",
    "Water boils at 100 degrees; ice melts at 0 degrees, they say.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "日本語のテキスト。 한국어 русский текст é ñ ü ﬁ ½",
    "  several   spaces,\ttabs and\nnew lines  ",
] * 8
TEXTS = st.text(st.sampled_from("The capital of France is 日本語é ﬁ½\t\n  .,0123\u03b2😀▁<s>́"), max_size=40)
KINDS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "bpe": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
    "unigram": {"model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "identity"},
    "unspaced": {"model_type": "bpe", "add_dummy_prefix": False, "normalization_rule_name": "identity"},
}


def directory(folder: Path, **files: Any) -> Path:
    """A directory of files: bytes, or objects that become JSON; a double underscore in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"config__json": {"model_type": "llama"}} | files).items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Tokenizer]:
    """The library with a model that it trained, and our tokenizer of the same file."""
    size = 420 if KINDS[request.param].get("byte_fallback") else 300
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=out,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        **KINDS[request.param],
    )
    library = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    folder = tmp_path_factory.mktemp(request.param)
    directory(folder, sentencepiece__bpe__model=out.getvalue(), tokenizer_config__json={"add_bos_token": False})
    return library, load_tokenizer(folder)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_sentencepiece_models_tokenize_as_the_library_does(both: tuple[Any, Tokenizer], text: str) -> None:
    library, ours = both
    text = text.replace("<s>", "")  # the library has no special tokens in text
    if ours.backend.normalizer is not None and "Precompiled" in str(ours.backend.normalizer):
        text = text.replace("\u0301", "")  # the one difference that is known
    assert ours.encode(text) == library.encode(text)


def test_sentencepiece_models_decode_as_the_library_does(both: tuple[Any, Tokenizer]) -> None:
    library, ours = both
    for text in SENTENCES[:5]:
        ids = library.encode(text)
        assert ours.decode(ids, start=True) == library.decode(ids)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Backend, Path]:
    """A tokenizer that the library trained with Qwen's rules, and the files that Qwen's old tokenizer saved."""
    style = BPE_STYLES["qwen2"]
    library = Backend(BPE())
    library.normalizer, library.pre_tokenizer, library.decoder = normalizers.NFC(), style.split(), decoders.ByteLevel()
    alphabet = sorted({character for character, _ in [*style.split().pre_tokenize_str("".join(map(chr, range(256))))]})
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(set("".join(alphabet))), show_progress=False)
    library.train_from_iterator(SENTENCES, trainer)
    folder = directory(
        tmp_path_factory.mktemp("qwen"),
        config__json={"model_type": "qwen2", "eos_token_id": library.get_vocab_size()},
        tokenizer_config__json={"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"},
        added_tokens__json={"<|im_end|>": library.get_vocab_size(), "<tool>": library.get_vocab_size() + 1},
    )
    library.model.save(str(folder))
    library.add_special_tokens(["<|im_end|>"])
    library.add_tokens(["<tool>"])
    return library, folder


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_vocabulary_and_merges_tokenize_as_the_library_does(qwen: tuple[Backend, Path], text: str) -> None:
    library, folder = qwen
    ours = load_tokenizer(folder)
    for whole in (text, f"<|im_end|>{text}<tool>"):
        assert ours.encode(whole) == library.encode(whole).ids


def test_added_tokens_keep_their_ids_and_kinds(qwen: tuple[Backend, Path]) -> None:
    library, folder = qwen
    ours = load_tokenizer(folder)
    end = library.token_to_id("<|im_end|>")
    assert ours.eos_ids == (end,) and ours.special_ids == {end}
    assert ours.token_id("<tool>") == end + 1
    assert ours.decode([end, end + 1]) == "<tool>"


def test_a_tiktoken_file_is_read_by_its_ranks(tmp_path: Path, qwen: tuple[Backend, Path]) -> None:
    # The same vocabulary as ranks: bytes first, then every merge by what it makes.
    ours = load_tokenizer(qwen[1])
    words = sorted({ours.token_bytes(at) for at in range(ours.vocab_size - 2)}, key=lambda word: (len(word), word))
    words = [bytes([byte]) for byte in range(256)] + [word for word in words if len(word) > 1]
    ranks = {word: rank for rank, word in enumerate(words)}
    file = b"".join(base64.b64encode(word) + b" %d\n" % rank for word, rank in ranks.items())
    added = {str(len(words)): {"content": "<|begin_of_text|>", "special": True}}
    settings_file = {
        "tokenizer_class": "Llama3Tokenizer",
        "bos_token": "<|begin_of_text|>",
        "added_tokens_decoder": added,
    }
    folder = directory(tmp_path / "llama3", tokenizer__model=file, tokenizer_config__json=settings_file)
    tokenizer = load_tokenizer(folder)

    def by_rank(word: bytes) -> list[int]:
        """tiktoken's rule: a word that has a rank is one token, else the pair that makes the least rank joins first."""
        if word in ranks:
            return [ranks[word]]
        parts = [word[at : at + 1] for at in range(len(word))]
        while True:
            made = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
            if not made or min(made) == len(ranks):
                return [ranks[part] for part in parts]
            at = made.index(min(made))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    for text in SENTENCES[:5]:
        cut = [piece for piece, _ in tokenizer.backend.pre_tokenizer.pre_tokenize_str(text)]
        expected = [token for piece in cut for token in by_rank(_bytes(piece))]
        assert tokenizer.encode(text) == [len(words), *expected]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _bytes(piece: str) -> bytes:
    from oarlock_runtime.models.detokenizer import spell_byte_level

    return spell_byte_level(piece)


LLAMA_CHAT = {
    "system": "<<SYS>>\n{{system}}\n<</SYS>>\n\n",
    "conversation": ["[INST] {{user}} [/INST]\n", " {{bot}} </s>\n"],
    "query": "[INST {{index}}] {{query}} [/INST]\n",
}


def test_paddlenlps_chat_template(tmp_path: Path, qwen: tuple[Backend, Path]) -> None:
    def rendered(template: dict[str, Any], *turns: str, system: str | None = None) -> str:
        folder = directory(tmp_path / "out", chat_template__json=template)
        qwen[0].save(str(folder / "tokenizer.json"))
        roles = ("user", "assistant")
        messages = [{"role": roles[at % 2], "content": text} for at, text in enumerate(turns)]
        first = [{"role": "system", "content": system}] if system is not None else []
        return load_tokenizer(folder).render_chat([*first, *messages])

    start = "<<SYS>>\n\n<</SYS>>\n\n"
    assert rendered(LLAMA_CHAT, "one") == start + "[INST 0] one [/INST]\n"
    assert rendered(LLAMA_CHAT, "one", system="Be brief.").startswith("<<SYS>>\nBe brief.\n<</SYS>>\n\n[INST 0]")
    assert (
        rendered(LLAMA_CHAT, "one", "two", "{{three}}")
        == start + "[INST] one [/INST]\n two </s>\n[INST 1] {{three}} [/INST]\n"
    )
    assert rendered({"query": "\n  {{query}}\n\n"}, "x") == "\n  x\n\n"
    assert rendered({"chat_template": "{{ messages[0].content }}!"}, "hi") == "hi!"
    for template, turns, problem in [
        ({"query": "{{query}}"}, ("a", "b", "c"), "only one question can be asked"),
        (LLAMA_CHAT, ("a", "b"), None),
    ]:
        if problem is None:
            assert rendered(template, *turns).endswith(" b </s>\n")
            continue
        with pytest.raises(Exception, match=problem):
            rendered(template, *turns)
    with pytest.raises(Exception, match="has no place for a system message"):
        rendered({"query": "{{query}}"}, "a", system="b")


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer__model": b"\x00\x01damaged"}, r"tokenizer\.model: is damaged, or not a SentencePiece model"),
        ({"tokenizer__model": b"QUI= 0\nQ! 1\n"}, r"tokenizer\.model: line 2: .* is not a base64 token and its rank"),
        ({"tokenizer__model": b"QUI= 0\nQg== 7\n"}, r"tokenizer\.model: its 2 ranks are not the numbers from 0 on"),
        ({"vocab__json": {"a": "b"}, "merges__txt": b""}, r"vocab\.json: is not a table from tokens to ids"),
        (
            {"vocab__json": {"a": 0}, "merges__txt": b"#version: 0.2\na b c\n"},
            r"merges\.txt: line 2: 'a b c' is not two",
        ),
        ({"vocab__json": {"a": 0}, "merges__txt": b"a b\n"}, r"merges\.txt: .*b"),
        ({"vocab__json": {"a": 0}, "merges__txt": b"\xff"}, r"merges\.txt: cannot be read"),
        ({"vocab__json": {"a": 0}, "merges__txt": b"", "added_tokens__json": {"x": "y"}}, "x: 'y' is not a token id"),
        ({"vocab__json": {"a": 0}, "merges__txt": b"", "added_tokens__json": {"x": 9}}, "token 9 doesn't follow"),
        ({"vocab__json": {"a": 0}}, r"has no tokenizer: neither tokenizer\.json nor .* nor vocab\.json with merges"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, files: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        load_tokenizer(directory(tmp_path / "out", **files))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ({"query": 3}, "query: 3 is not a string"),
        ({}, "query: missing"),
        ({"query": "", "conversation": ["one"]}, "conversation: has 1 texts"),
        ({"query": "", "conversation": "one"}, "conversation: is not a list"),
    ],
)
def test_chat_templates_that_cannot_be_read_are_named(
    tmp_path: Path, qwen: tuple[Backend, Path], template: dict[str, Any], problem: str
) -> None:
    folder = directory(tmp_path / "out", chat_template__json=template)
    qwen[0].save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=rf"chat_template\.json: {problem}"):
        load_tokenizer(folder)
