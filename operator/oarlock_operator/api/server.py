"""`spec.server`: the settings and limits of the server in each pod, each with the environment variable that carries it.

A field that is unset leaves the server its own default, so that no default is written down twice.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from oarlock_operator.api.model import ApiModel, Rule
from oarlock_operator.api.quantity import amount


@dataclass(frozen=True)
class Env:
    """The variable a field is handed over in. PaddleNLP's name where it has one. `values` translates choices.

    A quantity `in_bytes` is written out: the server's own suffixes aren't Kubernetes'.
    """

    name: str
    values: tuple[tuple[Any, str], ...] = ()
    in_bytes: bool = False

    def text(self, value: Any) -> str:
        """The value as the server reads it."""
        if self.in_bytes:
            return str(int(amount(value)))
        for choice, written in self.values:
            if value == choice and type(value) is type(choice):
                return written
        return str(value)


_SWITCH = ((True, "1"), (False, "0"))
_Count = Annotated[int, Field(ge=1, le=1 << 24)]


class SecretKey(ApiModel):
    """One key of a Secret in the deployment's namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""
    key: Annotated[str, Field(min_length=1, max_length=253)] = "token"
    """Key inside the Secret."""


class Server(ApiModel):
    """Settings and limits of the server. What is unset keeps the server's own default."""

    max_sequences: Annotated[int | None, Field(ge=1, le=4096), Env("BATCH_SIZE")] = None
    """Sequences computed at once (BATCH_SIZE)."""
    max_context: Annotated[_Count | None, Env("MAX_SEQ_LEN")] = None
    """Longest sequence in tokens, prompt and answer together (MAX_SEQ_LEN)."""
    max_output_tokens: Annotated[_Count | None, Env("MAX_DEC_LEN")] = None
    """Most tokens that one request may ask for (MAX_DEC_LEN)."""
    max_batched_tokens: Annotated[int | None, Field(ge=1, le=1 << 20), Env("OARLOCK_MAX_BATCHED_TOKENS")] = None
    """Tokens computed in one step, prefill and decode together."""
    queue_limit: Annotated[int | None, Field(ge=1, le=1 << 20), Env("MAX_CACHED_TASK_NUM")] = None
    """Requests that may wait; more are answered with 429 (MAX_CACHED_TASK_NUM)."""
    max_prefill_batch: Annotated[int | None, Field(ge=1, le=4096), Env("MAX_PREFILL_BATCH")] = None
    """New requests taken into the batch in one round (MAX_PREFILL_BATCH)."""
    kv_cache_sequences: Annotated[float | None, Field(ge=0.01, le=1e6), Env("BLOCK_BS")] = None
    """Sequences of full length that the KV cache has room for (BLOCK_BS)."""
    kv_prompt_share: Annotated[float | None, Field(ge=0.01, le=1), Env("BLOCK_RATIO")] = None
    """Share of the KV cache's blocks handed out to prompts (BLOCK_RATIO)."""
    kv_block_tokens: Annotated[int | None, Field(ge=1, le=4096), Env("BLOCK_SIZE")] = None
    """Tokens of one KV block (BLOCK_SIZE)."""
    kv_reserved_blocks: Annotated[int | None, Field(ge=0, le=4096), Env("ENC_DEC_BLOCK_NUM")] = None
    """Blocks set aside for the answer of a request when it is admitted (ENC_DEC_BLOCK_NUM)."""
    kv_cache_dtype: Literal["auto", "int8"] | None = None
    """How the KV cache is stored (USE_CACHE_KV_INT8). auto: in dtype; int8 is not available in this version."""
    kv_memory: Annotated[
        str | None,
        Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?(M|G|T|Mi|Gi|Ti)$", max_length=20),
        Env("OARLOCK_KV_MEMORY", in_bytes=True),
    ] = None
    """Memory for the KV cache in each pod, for example 8Gi."""
    max_stop_sequences: Annotated[int | None, Field(ge=1, le=64), Env("MAX_STOP_SEQS_NUM")] = None
    """Stop sequences of one request (MAX_STOP_SEQS_NUM)."""
    max_stop_sequence_tokens: Annotated[int | None, Field(ge=1, le=256), Env("STOP_SEQS_MAX_LEN")] = None
    """Tokens of one stop sequence (STOP_SEQS_MAX_LEN)."""
    http_processes: Annotated[int | None, Field(ge=1, le=64), Env("PUSH_MODE_HTTP_WORKERS")] = None
    """Processes that speak HTTP and tokenize (PUSH_MODE_HTTP_WORKERS)."""
    streaming: Annotated[bool | None, Env("DISABLE_STREAMING", ((True, "0"), (False, "1")))] = None
    """Whether PaddleNLP's protocol sends tokens one by one (DISABLE_STREAMING)."""
    warmup: Annotated[bool | None, Env("USE_WARMUP", _SWITCH)] = None
    """Whether the server warms itself up before it is ready (USE_WARMUP)."""
    hf_tokenizer: Annotated[bool | None, Env("USE_HF_TOKENIZER", _SWITCH)] = None
    """Whether Hugging Face's tokenizer is used in place of Paddle's (USE_HF_TOKENIZER)."""
    heartbeat_seconds: Annotated[int | None, Field(ge=1, le=600), Env("CHECK_HEALTH_INTERVAL")] = None
    """An engine that is silent for longer counts as not ready (CHECK_HEALTH_INTERVAL)."""
    dtype: Annotated[Literal["bfloat16", "float16", "float32"] | None, Env("DTYPE")] = None
    """Type of activations and of the KV cache (DTYPE)."""
    quantization: Annotated[Literal["auto", "bf16", "f32", "int8", "int4"] | None, Env("OARLOCK_QUANTIZATION")] = None
    """How weights are held in memory; auto keeps the 8 and 4 bits of a GGUF file and holds all else in dtype."""
    threads: Annotated[int | None, Field(ge=1, le=1024), Env("OARLOCK_THREADS")] = None
    """Compute threads of a CPU server."""
    prefix_cache: Annotated[bool | None, Env("OARLOCK_PREFIX_CACHE", _SWITCH)] = None
    """Whether prompts that begin alike share their KV cache."""
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86400), Env("OARLOCK_REQUEST_TIMEOUT")] = 300
    """Longest life of a request. Pods that leave are given at least that long to finish what they are doing."""
    api_key_secret: SecretKey | None = None
    """Secret with the keys that clients must send, separated by commas. None: open to all who reach the Service."""
    rules = (
        Rule(
            "!has(self.maxOutputTokens) || !has(self.maxContext) || self.maxOutputTokens <= self.maxContext",
            "server.maxOutputTokens must not exceed server.maxContext: the answer is part of the context",
            lambda s: s.max_output_tokens is None or s.max_context is None or s.max_output_tokens <= s.max_context,
        ),
        Rule(
            "!has(self.kvMemory) || quantity(self.kvMemory).compareTo(quantity('64Ti')) <= 0",
            "server.kvMemory must be at most 64Ti",
            lambda s: s.kv_memory is None or amount(s.kv_memory) <= amount("64Ti"),
        ),
        Rule(
            "!has(self.kvCacheDtype) || self.kvCacheDtype == 'auto'",
            "server.kvCacheDtype int8 is not available in this version: leave it out; the cache is held in dtype",
            lambda s: s.kv_cache_dtype in (None, "auto"),
        ),
    )
