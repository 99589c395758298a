"""PaddleNLP's warm-up: a full batch that decodes for long, then the longest prompts. Runs in the engine process.

Whatever is set up, tuned or first touched on the way is so before the server says that it is ready.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.plan import Executor
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import SamplingParams

_REPORT_SECONDS = 0.5


def warm_up(
    executor: Executor, config: EngineConfig, *, output: int, prefills: int, go_on: Callable[[float], bool]
) -> None:
    """2 x max_sequences requests of one token that decode `output`, then 2 x `prefills` prompts of full length.

    `go_on` is told the share that is done, twice a second, and ends it by returning False.
    """
    output = min(output, config.longest - 1)
    decoding = SamplingParams(max_tokens=output, min_tokens=max(output // 2, 1), temperature=0)
    filling = SamplingParams(max_tokens=1, temperature=0)
    prompt = np.zeros(config.longest - 1, np.int32)
    phases = (
        [Request(number, prompt[:1], decoding) for number in range(2 * config.max_sequences)],
        [Request(number, prompt, filling) for number in range(2 * prefills)],
    )
    total = sum(map(len, phases))
    engine = Engine(executor, replace(config, prefix_cache=False, max_waiting=total))
    said = time.monotonic()
    for requests in phases:
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
            if time.monotonic() - said > _REPORT_SECONDS:
                said = time.monotonic()
                if not go_on(engine.stats().finished_total / total):
                    return
