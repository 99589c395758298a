"""PaddleNLP's environment for `start_server`: its effective defaults, what it refuses, what has no effect. Pure.

`oarlock serve` reads the same variables with its own defaults; they are settings (settings.py).
"""

from collections.abc import Mapping

from oarlock_runtime.errors import SettingError
from oarlock_runtime.settings import DESCRIPTIONS

CHOICE = "OARLOCK_PADDLE_DEFAULTS"  # script (as start_server has them) or documented (as PaddleNLP's table has them)
_SCRIPT = {
    "MODEL_DIR": "/models",
    "MP_NUM": "1",
    "MP_NNODE": "1",
    "MAX_SEQ_LEN": "8192",
    "MAX_DEC_LEN": "8192",
    "BATCH_SIZE": "20",
    "BLOCK_BS": "4",
    "BLOCK_RATIO": "0.75",
    "ENC_DEC_BLOCK_NUM": "4",
    "MAX_PREFILL_BATCH": "4",
    "MAX_CACHED_TASK_NUM": "128",
    "PUSH_MODE_HTTP_WORKERS": "4",
    "HEALTH_HTTP_PORT": "8110",
    "SERVICE_GRPC_PORT": "8811",
    "METRICS_HTTP_PORT": "8722",
    "INTER_PROC_PORT": "8813",
    "SERVICE_HTTP_PORT": "9965",
    "OUTPUT_LOG_TO_CONSOLE": "0",
    "FD_LOG_DIR": "log",
    "tag": "3.0.0.b4",
}
_DOCUMENTED = {
    "MP_NUM": "8",
    "MAX_DEC_LEN": "1024",
    "BATCH_SIZE": "50",
    "BLOCK_BS": "50",
    "ENC_DEC_BLOCK_NUM": "2",
    "MAX_PREFILL_BATCH": "1",
    "PUSH_MODE_HTTP_WORKERS": "1",
    "INTER_PROC_PORT": "56666",
}
_DEFAULTS = {"script": _SCRIPT, "documented": _SCRIPT | _DOCUMENTED}
MAX_BATCH, SAFE_BATCH = 256, 128

# Variables of PaddleNLP's server that are accepted and change nothing: another part does their work, or none is needed.
NO_EFFECT = frozenset(
    {
        "BAD_TOKENS",
        "DISABLE_CAPACITY_CHECKER",
        "DYNAMIC_INFERENCE_MODE",
        "ENGINE_MAX_NEED_NUM",
        "FD_DEBUG",
        "FIRST_TOKEN_ID",
        "INFERENCE_MSG_QUEUE_ID",
        "INFER_WITH_REFERENCE_TOKENUM_THRESHOLD",
        "NVIDIA_TF32_OVERRIDE",
        "PREFILL_USE_SAGE_ATTN",
        "RETURN_FULL_HIDDEN_STATES",
        "SERVER_WAITTING_TIME",
        "SHM_UUID",
        "STOP_THRESHOLD",
        "TRITON_KERNEL_CACHE_DIR",
        "USE_CUSTOM_HEALTH_CHECKER",
        "USE_FASTER_TOP_P_SAMPLING",
        "USE_FAST_TOKENIZER",
    }
)
_OFF = ("", "0", "none", "false")
_NOT_YET = {  # what to say when they ask for something that isn't there
    "USE_CACHE_KV_INT8": "the KV cache is held in the compute type",
    "USE_CACHE_KV_INT4": "the KV cache is held in the compute type",
    "SPECULATE_METHOD": "requests are served without speculation",
}


def with_defaults(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ`, with start_server's defaults for what it lacks. SettingError when CHOICE names no set of them."""
    chosen = environ.get(CHOICE, "") or "script"
    if chosen not in _DEFAULTS:
        raise SettingError(f"{CHOICE}={chosen!r} is unknown: give one of {', '.join(_DEFAULTS)}")
    filled = {name: text for name, text in environ.items() if name != CHOICE}
    for name, text in _DEFAULTS[chosen].items():
        if not any(environ.get(one, "").strip() for one in _names(name)):  # an older name keeps the default out, too
            filled[name] = text
    return filled


def _names(name: str) -> tuple[str, ...]:
    """All names of PaddleNLP's for what variable `name` sets."""
    return next((described.env for described in DESCRIPTIONS.values() if name in described.env), (name,))


def check(environ: Mapping[str, str]) -> list[str]:
    """Warnings about `environ`, which has its defaults. SettingError for what start_server must not start with."""
    ranks, nodes = _integer(environ, "MP_NUM"), _integer(environ, "MP_NNODE")
    if ranks < 1 or nodes < 1 or ranks % nodes:
        raise SettingError(f"MP_NUM={ranks} must be a multiple of MP_NNODE={nodes}, both at least 1")
    batch = _integer(environ, "BATCH_SIZE")
    if not 1 <= batch <= MAX_BATCH:
        raise SettingError(f"BATCH_SIZE={batch} is out of range: give an integer from 1 to {MAX_BATCH}")
    for name in ("MAX_PREFILL_BATCH", "PUSH_MODE_HTTP_WORKERS"):
        if _integer(environ, name) < 1:
            raise SettingError(f"{name}={environ[name]} is out of range: give an integer of at least 1")
    if _integer(environ, "RECORD_TIME_INTERVAL", 600) >= 3600:
        raise SettingError(f"RECORD_TIME_INTERVAL={environ['RECORD_TIME_INTERVAL']} must be below 3600 seconds")
    warnings = []
    if batch > SAFE_BATCH:
        warnings.append(f"BATCH_SIZE={batch} is above {SAFE_BATCH}, the most that PaddleNLP recommends")
    for name, instead in _NOT_YET.items():
        if environ.get(name, "").strip().lower() not in _OFF:
            warnings.append(f"{name}={environ[name]} is not supported yet: {instead}")
    return warnings


def _integer(environ: Mapping[str, str], name: str, default: int = 1) -> int:
    text = environ.get(name, "").strip() or str(default)
    try:
        return int(text)
    except ValueError:
        raise SettingError(f"{name}={text!r} is not an integer") from None
