"""The engine: scheduler and executor in one loop, and its counters. Runs in the engine process, or in any process that
wants tokens without a server."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from oarlock_runtime.engine.config import EngineConfig
from oarlock_runtime.engine.output import StepOutput
from oarlock_runtime.engine.plan import BLOCK_TOKENS, Executor
from oarlock_runtime.engine.request import Finish, QueueFull, Request, TokenFilter
from oarlock_runtime.engine.scheduler import Scheduler
from oarlock_runtime.engine.stats import EngineStats
from oarlock_runtime.errors import RequestError


class Engine:
    """`while engine.has_work: engine.step()`. Not thread-safe.

    A request that fails ends alone, with Finish.ERROR. An exception from step() means that the executor is lost,
    and the engine with it.
    """

    def __init__(
        self, executor: Executor, config: EngineConfig, compile_schema: Callable[[str], TokenFilter] | None = None
    ) -> None:
        """`compile_schema` makes the filter of a JSON schema, or raises RequestError; without it there are none."""
        self.config = config
        self._compile_schema = compile_schema
        self._executor = executor
        self._scheduler = Scheduler(config)
        self._steps = 0
        self._rejected = 0
        self._step_seconds = self._executor_seconds = self._last_step_seconds = 0.0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: Request) -> None:
        """Queues a request. Raises RequestError naming the field at fault, or QueueFull."""
        try:
            self._scheduler.add(self._filtered(request), time.monotonic())
        except QueueFull:
            self._rejected += 1
            raise

    def _filtered(self, request: Request) -> Request:
        schema = request.sampling.json_schema
        if schema is None:
            return request
        if self._compile_schema is None:
            raise RequestError("response_format", "this engine has no grammars")
        return replace(request, filter=self._compile_schema(schema))

    def holds(self, request_id: int) -> bool:
        """Whether the request waits or runs."""
        return self._scheduler.holds(request_id)

    def abort(self, request_ids: Iterable[int]) -> StepOutput:
        """Ends these requests before the next step; unknown ones are passed over. The output says which were there."""
        ended = self._scheduler.abort(request_ids)
        count = len(ended)
        return StepOutput(
            np.array(ended, np.int64), np.full(count, -1, np.int32), np.full(count, Finish.ABORT, np.uint8)
        )

    def abort_all(self) -> StepOutput:
        """Ends every request, running or waiting."""
        return self.abort(self._scheduler.request_ids)

    def step(self) -> StepOutput | None:
        """Waits for a step and returns what came of it; None when there is no work.

        Planned and submitted before that: this step, if it was not yet, and with `overlap` the one after it. A request
        that is added while a step runs thus joins the next but one.
        """
        begin = time.monotonic()
        while self._scheduler.in_flight < (2 if self.config.overlap else 1):
            plan = self._scheduler.schedule(begin)
            if plan is None:
                break
            submitted = time.monotonic()
            self._executor.submit(plan)
            self._executor_seconds += time.monotonic() - submitted
        if not self._scheduler.in_flight:
            return None
        waited = time.monotonic()
        result = self._executor.collect()
        self._executor_seconds += time.monotonic() - waited
        output = self._scheduler.commit(result)
        self._steps += 1
        self._last_step_seconds = time.monotonic() - begin
        self._step_seconds += self._last_step_seconds
        return output

    def stats(self) -> EngineStats:
        scheduler, pool, counters = self._scheduler, self._scheduler.cache.pool, self._scheduler.counters
        return EngineStats(
            steps_total=self._steps,
            waiting=len(scheduler.waiting) + len(scheduler.preempted),
            running=len(scheduler.decoding) + len(scheduler.prefilling),
            blocks=pool.blocks,
            blocks_used=pool.blocks - pool.available,
            blocks_cached=pool.idle,
            prompt_tokens_total=counters.prompt_tokens,
            generation_tokens_total=counters.generation_tokens,
            computed_tokens_total=counters.computed_tokens,
            prefix_queries_total=counters.prefix_queries,
            prefix_hits_total=counters.prefix_hits,
            preemptions_total=counters.preemptions,
            finished_total=counters.finished,
            aborted_total=counters.aborted,
            failed_total=counters.failed,
            rejected_total=self._rejected,
            step_seconds_total=self._step_seconds,
            executor_seconds_total=self._executor_seconds,
            bytes_read_total=self._steps * self.config.step_weight_bytes
            + counters.context_tokens * self.config.bytes_per_block // BLOCK_TOKENS,
            last_step_seconds=self._last_step_seconds,
            queue_drain_rate=scheduler.waiting.drain_rate(time.monotonic()),
        )
