"""The compiled core under a crowded engine: bit for bit the tokens and log-probabilities of each request alone."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tiny import FAMILIES, tiny_checkpoint

from oarlock_runtime.engine import kv_cache
from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.engine import Engine
from oarlock_runtime.engine.executor import CoreExecutor, ExecutorOptions, load_executor
from oarlock_runtime.engine.request import Finish, Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.models.loading import Quantization

CONTEXT, BLOCKS, SEQUENCES, BATCHED = 448, 9, 5, 96

Answer = tuple[list[int], list[float], list[float], Finish]  # tokens, their log-probabilities, the prompt's, the end


MODELS: dict[str, tuple[str, Quantization]] = {
    **{family: (family, "auto") for family in FAMILIES},
    "int8": ("mistral", "int8"),
    "int4": ("qwen3", "int4"),
}


@pytest.fixture(scope="module", params=MODELS)
def executor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoreExecutor]:
    family, quantization = MODELS[request.param]
    checkpoint = tiny_checkpoint(tmp_path_factory.mktemp("models"), family)
    options = ExecutorOptions(
        quantization=quantization,
        max_sequences=SEQUENCES,
        max_context=CONTEXT,
        max_batched_tokens=BATCHED,
        kv_blocks=BLOCKS,
        threads=2,
    )
    yield load_executor(checkpoint, options)


def make_engine(executor: CoreExecutor, max_batched_tokens: int, prefix_cache: bool) -> Engine:
    return Engine(
        executor,
        EngineConfig(
            vocab=256,
            max_context=CONTEXT,
            max_sequences=SEQUENCES,
            max_batched_tokens=max_batched_tokens,
            max_rows=executor.max_rows,
            blocks=BLOCKS,
            prefix_cache=prefix_cache,
        ),
    )


def answers(engine: Engine, requests: list[Request], aborts: dict[int, int]) -> dict[int, Answer]:
    """Runs all requests; `aborts`: request to the step before which it is aborted, and so not answered for."""
    for request in requests:
        engine.add(request)
    found: dict[int, Answer] = {request.request_id: ([], [], [], Finish.RUNNING) for request in requests}
    step = 0
    while engine.has_work:
        engine.abort([request_id for request_id, at in aborts.items() if at == step])
        step += 1
        output = engine.step()
        if output is None:
            break
        for part in output.prompt_logprobs:
            found[part.request_id][2].extend(part.logprobs.tolist())
        logprobs = (
            {}
            if output.logprobs is None
            else dict(zip(output.logprobs.entries.tolist(), output.logprobs.logprobs.tolist(), strict=True))
        )
        for entry, request_id in enumerate(output.request_ids.tolist()):
            tokens, values, scores, _ = found[request_id]
            tokens.append(int(output.token_ids[entry]))
            values.append(logprobs[entry])
            found[request_id] = tokens, values, scores, Finish(int(output.finish[entry]))
    return {request_id: answer for request_id, answer in found.items() if request_id not in aborts}


@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.integers(0, 1 << 32), st.booleans(), st.sampled_from([SEQUENCES, 40, BATCHED]))
def test_each_request_gets_what_it_would_get_alone(
    executor: CoreExecutor, seed: int, prefix_cache: bool, max_batched_tokens: int
) -> None:
    random = np.random.default_rng(seed)
    text = random.integers(0, 256, 300).astype(np.int32)
    requests = []
    for request_id in range(7):
        own = random.integers(0, 256, random.integers(1, 4)).astype(np.int32)
        sampling = SamplingParams(
            max_tokens=int(random.choice([20, 90, 150])),
            temperature=float(random.choice([0, 0.8])),
            top_p=float(random.choice([1, 0.9])),
            top_k=int(random.choice([0, 20])),
            repetition_penalty=float(random.choice([1, 1.2])),
            seed=int(random.integers(0, 1 << 40)),
            top_logprobs=0,
            prompt_logprobs=0 if random.random() < 0.2 else -1,
        )
        prompt = np.concatenate((text[: random.choice([20, 64, 128, 200])], own)).astype(np.int32)
        requests.append(Request(request_id, prompt, sampling))
    aborts = {int(random.integers(0, 7)): int(random.integers(1, 60))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kv_cache, "ROOM_BLOCKS", 0)
        engine = make_engine(executor, max_batched_tokens, prefix_cache)
        together = answers(engine, requests, aborts)
    assert engine.stats().preemptions_total > 0 and engine.stats().blocks_used == 0
    for request in requests:
        if request.request_id in together:
            alone = answers(make_engine(executor, BATCHED, prefix_cache=False), [request], {})
            assert together[request.request_id] == alone[request.request_id]
