"""The engine's counters: what /metrics and the heartbeat carry."""

import msgspec


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A snapshot. Names ending in _total only grow; seconds are of a monotonic clock."""

    steps_total: int = 0  # the heartbeat: it grows while there is work
    waiting: int = 0  # requests in the queue, preempted ones included
    running: int = 0
    blocks: int = 0  # KV pool, in blocks of 64 tokens
    blocks_used: int = 0  # held by running sequences
    blocks_cached: int = 0  # free, but still holding a reusable prefix
    prompt_tokens_total: int = 0  # of admitted requests, cached ones included
    generation_tokens_total: int = 0
    computed_tokens_total: int = 0  # rows that went through the model
    prefix_queries_total: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits_total: int = 0  # and found there
    preemptions_total: int = 0
    finished_total: int = 0  # ended by stop or length
    aborted_total: int = 0
    failed_total: int = 0
    rejected_total: int = 0  # refused because the queue was full
    step_seconds_total: float = 0.0  # from plan to committed result
    executor_seconds_total: float = 0.0  # of it, in the executor
    bytes_read_total: int = 0  # estimate: weights once a step, and the KV cache of each sequence
    last_step_seconds: float = 0.0
    queue_drain_rate: float = 0.0  # requests admitted per second, lately
