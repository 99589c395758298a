"""A model's tokenizer: text to ids and back, its special tokens and its chat template.

Runs in the server process. Built from a GGUF's metadata, or from a Hugging Face directory's tokenizer.json (or its
SentencePiece tokenizer.model), tokenizer_config.json and chat_template.jinja.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from oarlock_runtime.errors import RequestError
from oarlock_runtime.models.checkpoint import model_file
from oarlock_runtime.models.detokenizer import ByteTable, StreamDecoder, spell_byte_level, spell_piece
from oarlock_runtime.models.tokenizer_gguf import from_gguf
from oarlock_runtime.models.tokenizer_hf import from_directory
from oarlock_runtime.models.tokenizer_source import TokenizerSource


class Tokenizer:
    """Thread-safe. Ids that the vocabulary lacks decode to nothing."""

    def __init__(self, source: TokenizerSource) -> None:
        self.backend = backend = source.backend
        self.bos_id = source.bos_id
        self.eos_ids = source.eos_ids
        self.byte_level = source.byte_level
        self.spaced = source.spaced
        self.template = source.template
        added = backend.get_added_tokens_decoder()
        self.vocab_size = max([backend.get_vocab_size(False), *(token_id + 1 for token_id in added)])
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content.encode("utf-8", "replace") for token_id, token in added.items()}
        self._spelled = spell_byte_level if source.byte_level else spell_piece
        self._all = ByteTable(self.vocab_size, self._spell)
        self._visible = ByteTable(self.vocab_size, self._spell_visible)

    def encode(self, text: str, add_special: bool = True, field: str = "prompt") -> list[int]:
        """Token ids of text; add_special puts BOS (and EOS) around it as the model wants.

        RequestError on `field` for text that is no valid unicode.
        """
        try:
            return self.backend.encode(text, add_special_tokens=add_special).ids
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestError(field, "the text is not valid unicode (it holds a lone surrogate)") from error

    def decode(self, ids: Iterable[int], skip_special: bool = True, start: bool = False) -> str:
        """Text of ids. start=True: they begin a text, so a space that `encode` put there is taken away again."""
        decoder = self.stream(skip_special, start)
        return decoder.push(tuple(ids)) + decoder.flush()

    def stream(self, skip_special: bool = True, start: bool = False) -> StreamDecoder:
        """A decoder for the ids of one sequence as they come; see `decode`."""
        return StreamDecoder(self._visible if skip_special else self._all, start and self.spaced)

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes of one token, special ones included; possibly a part of a character."""
        return self._all[token_id]

    def token_text(self, token_id: int) -> str:
        """Text of one token, special ones included; U+FFFD where it holds a part of a character."""
        return self._all[token_id].decode("utf-8", "replace")

    def token_id(self, text: str) -> int | None:
        """Id of the token spelled exactly `text` in the vocabulary, such as "<|im_end|>"."""
        return self.backend.token_to_id(text)

    def render_chat(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt's text for messages; encode it with add_special=False, since templates write BOS themselves.

        RequestError on `messages` when the model has no chat template, or the template can't render them.
        """
        if self.template is None:
            raise RequestError("messages", "this model has no chat template; use /v1/completions")
        return self.template.render(
            list(messages), add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )

    def _spell(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self.backend.id_to_token(token_id)
        return b"" if token is None else self._spelled(token)

    def _spell_visible(self, token_id: int) -> bytes:
        return b"" if token_id in self.special_ids else self._all[token_id]


def load_tokenizer(path: Path | str) -> Tokenizer:
    """The tokenizer of a GGUF file or a Hugging Face directory. CheckpointError names what is missing or wrong."""
    path = model_file(Path(path).expanduser())
    return Tokenizer(from_gguf(path) if path.is_file() else from_directory(path))
