"""A model split over two GPUs against the whole on one, and what a lost rank looks like.

`make gpu-test` runs these on a machine with two GPUs; elsewhere they are skipped.
"""

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.cuda import CUDA, generate, run, same, small_engine
from support.forcing import forced_plan
from support.prompts import forced_texts
from support.ranks import split_executor
from support.served import START_SECONDS, Served, alive, served, until
from support.tiny import FAMILIES, tiny_directory

from oarlock_runtime import _C
from oarlock_runtime.cli.bench.steps import step_plan
from oarlock_runtime.engine.executor import load_executor
from oarlock_runtime.engine.local_ranks import SplitModel, split_model
from oarlock_runtime.engine.request import Request
from oarlock_runtime.engine.sampling import SamplingParams
from oarlock_runtime.models.checkpoint import open_checkpoint
from oarlock_runtime.models.tokenizer import load_tokenizer

pytestmark = pytest.mark.skipif(_C.cuda_device_count() < 2, reason="there are not two GPUs, or this build has no cuda")

REAL_MODEL = os.environ.get("TEST_MODEL", "")  # SmolLM2-135M-Instruct, as its package ships it
HEARTBEAT = 5


def model(folder: Path, family: str = "qwen3") -> Path:
    return tiny_directory(folder, family, head_dim=64)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_the_same_split(tmp_path: Path, family: str, dtype: str) -> None:
    path = model(tmp_path, family)
    options = replace(CUDA, dtype=dtype)
    random = np.random.default_rng(5)
    texts = [random.integers(0, 256, count).tolist() for count in (150, 1, 70, 200)]
    plan = forced_plan(texts)
    expected = run(load_executor(open_checkpoint(path), options), plan)
    with split_executor(path, options, 2) as executor:
        got = run(executor, plan)
        # Greedy rows exchange candidates, the others logits.
        plan.target = np.full(len(plan.sample_rows), -1, np.int32)
        plan.top_logprobs = np.full(len(plan.sample_rows), -1, np.int32)
        likeliest = run(executor, plan)
        plan.top_logprobs[0] = 0
        mixed = run(executor, plan)
    assert not got.status.any() and not likeliest.status.any()
    assert np.abs(got.logprob - expected.logprob).max() < 0.2
    assert (got.top_ids[:, 0] != expected.top_ids[:, 0]).mean() < 0.1
    np.testing.assert_array_equal(likeliest.token, got.top_ids[:, 0])
    np.testing.assert_array_equal(mixed.token, likeliest.token)


@pytest.mark.skipif(not REAL_MODEL, reason="TEST_MODEL names no model")
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_real_weights_keep_the_parity_rule(dtype: str) -> None:
    """Beside the single GPU, and beside the CPU in float32, which agrees with the reference everywhere."""
    texts = forced_texts(load_tokenizer(REAL_MODEL))
    options = replace(CUDA, dtype=dtype)
    checkpoint = open_checkpoint(REAL_MODEL)
    whole = load_executor(checkpoint, options)
    exact = load_executor(checkpoint, replace(CUDA, device="cpu", dtype="f32", quantization="f32", threads=8))
    agreed = {"one GPU": 0, "exact": 0}
    rows, margins = 0, {"one GPU": [0.0], "exact": [0.0]}
    with split_executor(Path(REAL_MODEL), options, 2) as executor:
        for text in texts:
            plan = forced_plan([text.ids])
            plan.top_logprobs = np.full(len(plan.sample_rows), 20, np.int32)
            chosen = slice(text.rows.start, text.rows.stop)
            got = run(executor, plan).top_ids[chosen, 0]
            rows += len(got)
            for name, other in (("one GPU", whole), ("exact", exact)):
                wanted = run(other, plan)
                ids, logprobs = wanted.top_ids[chosen], wanted.top_logprobs[chosen]
                agreed[name] += int((got == ids[:, 0]).sum())
                for row in np.flatnonzero(got != ids[:, 0]).tolist():
                    places = np.flatnonzero(ids[row] == got[row])
                    margins[name].append(float(logprobs[row, 0] - logprobs[row, places[0]]) if len(places) else np.inf)
    for name in agreed:
        print(f"{dtype}: {agreed[name]} of {rows} tokens as {name}; largest margin {max(margins[name]):.3f} nat")
    assert rows == 960
    assert min(agreed.values()) >= 0.99 * rows
    assert max(map(max, margins.values())) < 0.1


def test_graphs_give_the_same_bits(tmp_path: Path) -> None:
    path = model(tmp_path)
    plans = []
    random = np.random.default_rng(3)
    for batch, context in [(1, 90), (3, 400), (31, 200), (33, 130), (1, 500), (64, 70)]:
        plan = step_plan(256, batch, 1, context)
        plan.token_ids = random.integers(0, 256, batch).astype(np.int32)
        plans.append(plan)
        sampled = replace(plan)
        sampled.temperature = random.choice([0, 0.9], batch).astype(np.float32)
        sampled.seed = random.integers(0, 1 << 40, batch).astype(np.uint64)
        sampled.top_logprobs = np.full(batch, 3, np.int32)
        plans.append(sampled)
    with split_executor(path, replace(CUDA, graphs=False, batch_invariant=True), 2) as plain:
        expected = [run(plain, plan) for plan in plans]
    with split_executor(path, replace(CUDA, batch_invariant=True), 2) as graphs:
        for plan, wanted in zip(plans, expected, strict=True):
            for _ in range(3):  # call by call, captured, replayed
                got = run(graphs, plan)
                same(got, wanted)


def test_steps_overlap(tmp_path: Path) -> None:
    """Tokens fed forward on every rank's device: greedy ones, and those that rank 0 draws for all."""
    random = np.random.default_rng(0)
    requests = [
        Request(
            number,
            random.integers(0, 256, int(random.integers(1, 200))).astype(np.int32),
            SamplingParams(
                max_tokens=int(random.integers(20, 150)),
                temperature=0.8 if number > 9 else 0.0,
                seed=number,
                ignore_eos=True,
            ),
        )
        for number in range(14)
    ]
    small = replace(CUDA, max_context=448, max_sequences=8, max_batched_tokens=96, kv_blocks=64, batch_invariant=True)
    with split_executor(model(tmp_path), small, 2) as executor:
        first, overlapped = (
            generate(small_engine(executor, executor.max_rows, executor.blocks, overlap), requests)
            for overlap in (False, True)
        )
        assert overlapped == first
    assert all(len(first[request.request_id]) == request.sampling.max_tokens for request in requests)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_step(tmp_path: Path, sent: signal.Signals) -> None:
    plan = step_plan(256, 4, 1, 70)

    def step_until_it_fails(split: SplitModel) -> None:
        for _ in range(5):
            run(split.executor, plan)
        split.comm.set_time_limit(2)
        child = multiprocessing.active_children()[0]
        assert child.pid is not None
        begin = time.monotonic()
        os.kill(child.pid, sent)
        with pytest.raises(ConnectionError, match="rank 1") as failure:
            while time.monotonic() - begin < 20:
                run(split.executor, plan)
        print(f"{failure.value} after {time.monotonic() - begin:.2f} s")
        assert time.monotonic() - begin < 5

    with (
        pytest.raises(RuntimeError, match="the device has failed"),  # what comes after, and how the others are told
        split_model(partial(open_checkpoint, model(tmp_path), "auto"), CUDA, 2) as split,
    ):
        step_until_it_fails(split)


def complete(host: Served, tokens: int) -> httpx.Response:
    body = {"prompt": "one two", "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    return httpx.post(host.url + "/v1/completions", json=body, timeout=START_SECONDS)


def serve(path: Path, cache: Path) -> Served:
    return Served(path, cache, "--device", "cuda", "--ranks", "2", "--heartbeat-seconds", str(HEARTBEAT))


def test_a_server_over_two_gpus_answers_and_leaves(tmp_path: Path) -> None:
    path = model(tmp_path)
    with served(path, tmp_path, "--device", "cuda") as one:
        expected = complete(one, 40).json()["choices"][0]["text"]
    host = serve(path, tmp_path)
    try:
        host.wait_ready()
        assert set(host.children()) >= {"engine_process", "worker_process"}
        answer = complete(host, 40).json()
        assert answer["usage"]["completion_tokens"] == 40
        print("the same text" if answer["choices"][0]["text"] == expected else "another text")
        time.sleep(2 * HEARTBEAT)  # beats keep idle ranks together
        assert complete(host, 5).status_code == 200
        host.signal(signal.SIGTERM)
        assert host.wait() == 0
    finally:
        host.process.kill()


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", ["engine_process", "worker_process"])
def test_a_rank_that_fails_ends_the_server(tmp_path: Path, victim: str, sent: signal.Signals) -> None:
    host = serve(model(tmp_path), tmp_path)
    try:
        host.wait_ready()
        pids = host.children()
        answers: list[int] = []

        def call() -> None:
            try:
                while not answers or answers[-1] == 200:
                    answers.append(complete(host, 300).status_code)
            except httpx.TransportError:
                return

        caller = threading.Thread(target=call)
        caller.start()
        until(lambda: bool(answers))
        begin = time.monotonic()
        os.kill(pids[victim], sent)
        until(lambda: host.health("ready") != 0, 10)
        failed = time.monotonic() - begin
        assert host.wait(3 * HEARTBEAT) == 1
        print(f"{victim} {sent.name}: ready fails after {failed:.1f} s, ended after {time.monotonic() - begin:.1f} s")
        caller.join(START_SECONDS)
        assert set(answers) <= {200, 500, 503}
        assert not any(alive(pid) for pid in pids.values())
    finally:
        host.process.kill()
