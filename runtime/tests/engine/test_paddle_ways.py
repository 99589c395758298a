"""What PaddleNLP's requests ask of the engine beyond others: few admissions a step, its penalties, names."""

from typing import Any

import numpy as np
import pytest
from support.toy_executor import ToyExecutor

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.engine.scheduler import Scheduler
from oarlock_runtime.engine.sequences import Sequences

CONFIG: dict[str, Any] = {
    "vocab": 1000,
    "max_context": 256,
    "max_sequences": 8,
    "max_batched_tokens": 256,
    "max_rows": 64,
    "blocks": 64,
}


def request(number: int, prompt: list[int], **sampling: Any) -> Request:
    params = SamplingParams(temperature=0, **{"max_tokens": 50, **sampling})
    return Request(number, np.array(prompt, np.int32), params)


@pytest.mark.conformance(21)
def test_few_are_admitted_in_a_step_and_in_order() -> None:
    config = EngineConfig(**CONFIG, max_admissions=2)
    scheduler, executor = Scheduler(config), ToyExecutor(1000, 64)
    for number in range(5):
        scheduler.add(request(number, [number, 7, 9]), 0.0)
    running = []
    for step in range(4):
        plan = scheduler.schedule(float(step))
        assert plan is not None
        executor.submit(plan)
        scheduler.commit(executor.collect())
        running.append([number for number in range(5) if number not in scheduler.waiting])
    assert running == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.conformance(21)
def test_no_more_than_the_batch_run_at_once() -> None:
    engine = Engine(ToyExecutor(1000, 64), EngineConfig(**CONFIG | {"max_sequences": 3}))
    for number in range(7):
        engine.add(request(number, [number], max_tokens=3))
    most = 0
    while engine.has_work:
        engine.step()
        most = max(most, engine.stats().running)
    assert most <= 3 and engine.stats().finished_total == 7


def test_penalties_see_the_last_prompt_token_as_generated() -> None:
    sequences = Sequences(2, 256, ())
    seat = sequences.sit(
        request(1, [5, 6, 7, 7], frequency_penalty=0.5, repetition_penalty=1.2, last_prompt_token_counts=True),
        [],
        0,
        60,
    )
    history = sequences.history[seat]
    assert history is not None and history.columns.tolist() == [[7], [1]]
    other = sequences.history[sequences.sit(request(2, [5, 6, 7, 7], repetition_penalty=1.2), [], 1, 60)]
    assert other is not None and other.columns.tolist() == [[5, 6, 7], [0, 0, 0]]


def test_held_until_it_ends() -> None:
    engine = Engine(ToyExecutor(1000, 64), EngineConfig(**CONFIG))
    engine.add(request(1, [5], max_tokens=2))
    assert engine.holds(1) and not engine.holds(2)
    while engine.has_work:
        engine.step()
    assert not engine.holds(1)
