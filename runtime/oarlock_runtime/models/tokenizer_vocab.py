"""Builds a byte-level tokenizer from a vocabulary: vocab.json and merges.txt, or a tiktoken file of ranks.

Runs in the server process. These files say nothing of how text is cut into words; the tokenizer's class does, or the
family of the model.
"""

import base64
import binascii
from pathlib import Path

from tokenizers import Tokenizer as Backend

from oarlock_runtime.models.detokenizer import CHARACTER_OF_BYTE
from oarlock_runtime.models.errors import CheckpointError
from oarlock_runtime.models.fields import Fields, read_json
from oarlock_runtime.models.pretokenizers import BPE_STYLES, byte_level_bpe

VOCAB, MERGES = "vocab.json", "merges.txt"
STYLE_OF_CLASS = {
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
    "GPT2Tokenizer": "gpt2",
    "GPTTokenizer": "gpt2",
    "Llama3Tokenizer": "llama3",
}
STYLE_OF_FAMILY = {"qwen2": "qwen2", "qwen3": "qwen2", "llama": "llama3", "mistral": "tekken"}


def from_vocabulary(vocab: Path, merges: Path, settings: Fields, config: Fields) -> Backend:
    """The tokenizer of vocab.json and merges.txt; settings: tokenizer_config.json. CheckpointError names the file."""
    ids = read_json(vocab).values
    if not ids or not all(isinstance(token_id, int) for token_id in ids.values()):
        raise CheckpointError(f"{vocab}: is not a table from tokens to ids")
    try:
        lines = merges.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{merges}: cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not space or " " in right:
            raise CheckpointError(f"{merges}: line {number}: {line!r:.60} is not two parts of a token")
        pairs.append((left, right))
    return _byte_level(merges, dict(ids), pairs, settings, config)


def from_tiktoken(file: Path, settings: Fields, config: Fields) -> Backend:
    """The tokenizer of a file of base64 tokens and ranks, as Llama 3's tokenizer.model is."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError) as error:
            raise CheckpointError(f"{file}: line {number}: {line!r:.60} is not a base64 token and its rank") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{file}: its {len(ranks)} ranks are not the numbers from 0 on")
    spelled = {token: "".join(CHARACTER_OF_BYTE[byte] for byte in token) for token in ranks}
    pairs = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [cut for cut in cuts if cut[0] in ranks and cut[1] in ranks]
        known.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        pairs += [(spelled[left], spelled[right]) for left, right in known]
    return _byte_level(file, {spelled[token]: rank for token, rank in ranks.items()}, pairs, settings, config)


def is_tiktoken(file: Path) -> bool:
    """Whether a .model file is tiktoken's: text, a token and a rank in each line."""
    with file.open("rb") as opened:
        first = opened.readline(4096).split()
    return len(first) == 2 and first[1].isdigit()


def _byte_level(
    file: Path, ids: dict[str, int], merges: list[tuple[str, str]], settings: Fields, config: Fields
) -> Backend:
    kind = settings.text("tokenizer_class", "")
    name = STYLE_OF_CLASS.get(kind) or STYLE_OF_FAMILY.get(config.text("model_type", ""), "gpt2")
    return byte_level_bpe(ids, merges, BPE_STYLES[name], file)
