"""What a server can serve at most; requests of either dialect are checked against it. Used by the server processes."""

from dataclasses import dataclass

CHARACTERS_A_TOKEN = 512  # more than any token's: a text beyond context * this can't fit, and isn't tokenized to see


@dataclass(frozen=True, slots=True)
class Limits:
    """What this server can serve at most."""

    vocab: int
    max_context: int
    max_output_tokens: int  # 0 = up to the context
    max_n: int
    max_prompts: int
    max_choices: int  # of one call: as many as the batch and the queue hold together
    end_ids: tuple[int, ...]  # the tokenizer's end tokens, some of which the model's own configuration may not name
