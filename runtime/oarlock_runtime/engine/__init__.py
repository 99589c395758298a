"""The engine: which tokens are computed in which step, and where their keys and values lie. Runs in the engine process.

One step is `Scheduler.schedule() -> StepPlan`, `Executor.submit(plan)`, `Executor.collect() -> StepResult`,
`Scheduler.commit(result) -> StepOutput`; `Engine` is that loop. Read sequences.py, block_pool.py, scheduler.py,
engine.py, in this order.
"""
