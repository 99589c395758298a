"""The float32 reference itself: sane English from the real model, and properties that any decoder has."""

from pathlib import Path

import numpy as np
import pytest
from support.prompts import forced_texts
from support.reference import Reference, visible
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.tokenizer import load_tokenizer


def test_the_real_model_writes_english(smollm2: Path) -> None:
    tokenizer, reference = load_tokenizer(smollm2), Reference.load(open_checkpoint(smollm2))
    texts = forced_texts(tokenizer)
    assert len(texts) == 20 and all(len(text.continuation) == 48 for text in texts)
    answer = reference.greedy(tokenizer.encode("The capital of France is"), 2)
    assert tokenizer.decode(answer).startswith(" Paris.")
    chat = tokenizer.render_chat([{"role": "user", "content": "What is gravity?"}])
    answer = reference.greedy(tokenizer.encode(chat, add_special=False), 3, tokenizer.eos_ids)
    assert tokenizer.decode(answer).startswith("Gravity is")
    text = texts[0]
    best = reference.forward(text.ids).argmax(axis=1)
    assert best[text.rows.start : text.rows.stop].tolist() == text.continuation


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_depends_on_what_came_before_it_alone(tmp_path: Path, family: str) -> None:
    reference = Reference.load(tiny_checkpoint(tmp_path, family))
    ids = np.random.default_rng(1).integers(0, 512, 60).tolist()
    whole = reference.forward(ids)
    np.testing.assert_allclose(reference.forward(ids[:30]), whole[:30], atol=1e-4)


def test_a_window_counts_the_query_itself() -> None:
    assert visible(4, 2).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert visible(3, 0).sum() == 6
