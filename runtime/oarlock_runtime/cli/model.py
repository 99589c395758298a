"""`oarlock model inspect` tells what a checkpoint is, `random` makes one, and `export` writes one in another container.

All run in the user's process; inspect reads headers only.
"""

from pathlib import Path

from oarlock_runtime.cli.arguments import MODEL_HELP, Parser, integer
from oarlock_runtime.cli.dispatch import UsageError
from oarlock_runtime.cli.terminal import human_bytes, progress, say, table
from oarlock_runtime.server.paddle.block_plan import advise
from oarlock_runtime.settings import parse

PADDLE_PACKINGS = ("auto", "sm75", "sm70")
USAGE = """usage: oarlock model inspect MODEL [flags]
       oarlock model export MODEL --to paddle|safetensors -o DIR [flags]
       oarlock model random CONFIG --to gguf|safetensors -o PATH [flags]

inspect  family, shapes, formats, size, context, and the memory a model takes
export   a model in another container: a Paddle static graph, or Hugging Face safetensors
random   a seeded random model of any shape, for benchmarks and tests
"""


def inspect_parser() -> Parser:
    from oarlock_runtime.models.loading import QUANTIZATIONS

    flags = Parser("model inspect", "Prints what a model is, how its weights will be held, and the memory it takes.")
    flags.add_argument("model", help=MODEL_HELP)
    flags.add_argument("--quantization", choices=QUANTIZATIONS, default="auto", help="as for serve (default auto)")
    flags.add_argument("--dtype", choices=("bf16", "f32"), default="bf16", help="of activations and KV (default bf16)")
    flags.add_argument("--paddle-packing", choices=PADDLE_PACKINGS, default="auto", help="as for serve (default auto)")
    flags.add_argument("--context", type=integer(1), help="tokens, for the KV cache's size (default: the model's)")
    flags.add_argument("--paddle", action="store_true", help="advise BLOCK_BS, BLOCK_RATIO and BATCH_SIZE too")
    flags.add_argument("--average-in", type=integer(1), default=300, help="tokens of a prompt (default 300)")
    flags.add_argument("--average-out", type=integer(1), default=900, help="tokens of an answer (default 900)")
    flags.add_argument("--kv-memory", default="", help="of the KV cache (default: half of the free memory)")
    return flags


def inspect(arguments: list[str]) -> int:
    from oarlock_runtime.cli.download import local_path
    from oarlock_runtime.engine.memory import available_memory
    from oarlock_runtime.models.inspect import describe_rope, inspect_model

    flags = inspect_parser().read(arguments)
    report = inspect_model(local_path(flags.model), flags.quantization, flags.dtype, flags.paddle_packing)
    spec = report.spec
    context = flags.context or spec.max_context
    kv = human_bytes(report.kv_bytes(context))
    features = [
        name
        for name, here in (
            ("qkv bias", spec.qkv_bias),
            ("qk norm", spec.qk_norm),
            ("tied embeddings", spec.tied_embeddings),
            (f"sliding window of {spec.sliding_window} tokens", spec.sliding_window),
        )
        if here
    ]
    facts = [
        ["path", str(report.path)],
        ["container", report.container + (f", cut for {report.ranks} ranks" if report.ranks > 1 else "")],
        ["family", spec.family],
        ["parameters", f"{report.parameters / 1e6:.1f} M"],
        ["layers", f"{spec.layers} of width {spec.hidden}, feed-forward {spec.ffn}"],
        ["attention", f"{spec.heads} heads of {spec.head_dim}, {spec.kv_heads} for keys and values"],
        ["vocabulary", f"{spec.vocab}"],
        ["context", f"{spec.max_context} tokens, rotary {describe_rope(spec)}"],
        ["features", ", ".join(features) or "none beyond Llama's"],
        ["on disk", human_bytes(report.file_bytes)],
        ["weights in memory", human_bytes(report.weight_bytes)],
        ["read by a decode step", human_bytes(report.step_bytes)],
        ["KV cache", f"{human_bytes(report.kv_bytes_per_token)} a token, {kv} for {context} tokens"],
    ]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:<{width}}  {value}")
    print()
    rows = [
        [
            row.name,
            f"{row.count}",
            " x ".join(map(str, row.shape)),
            row.stored,
            row.held,
            human_bytes(row.file_bytes),
            human_bytes(row.held_bytes),
        ]
        for row in report.rows
    ]
    title = f"Weights, as --quantization {report.quantization} --dtype {report.dtype} holds them"
    table(title, ("weight", "number", "shape", "stored", "held", "on disk", "in memory"), rows)
    if flags.paddle:
        memory = parse("kv_memory", flags.kv_memory or "auto", "--kv-memory")
        memory = memory or max(available_memory() - report.weight_bytes, 0) // 2
        _advise(memory // report.kv_bytes_per_token, context, flags.average_in, flags.average_out)
    return 0


def _advise(tokens: int, context: int, average_in: int, average_out: int) -> None:
    """What PaddleNLP's guide makes of a KV cache of so many tokens."""
    advice = advise(tokens, context, average_in, average_out)
    print(
        f"\nFor prompts of {average_in} and answers of {average_out} tokens, with a KV cache of {tokens} tokens:\n"
        f"MAX_SEQ_LEN={context} BLOCK_BS={advice.block_bs:g} BLOCK_RATIO={advice.block_ratio:g} "
        f"BATCH_SIZE={advice.batch_size}"
    )


def export_parser() -> Parser:
    flags = Parser(
        "model export",
        "Writes a model in another container. Weights keep their bits, but for those that are quantized.",
        "A Paddle static graph is written by Paddle itself: pip install 'oarlock[paddle]'.",
    )
    flags.add_argument("model", help=MODEL_HELP)
    flags.add_argument("--to", choices=("paddle", "safetensors"), required=True, help="container to write")
    flags.add_argument("-o", "--output", required=True, metavar="DIR", help="the directory to write")
    flags.add_argument(
        "--dtype",
        choices=("auto", "f32", "f16", "bf16"),
        default="auto",
        help="of the weights (default auto: the model's own, and bf16 for quantized ones)",
    )
    flags.add_argument("--paddle-packing", choices=PADDLE_PACKINGS, default="auto", help="of MODEL, as for serve")
    paddle = flags.add_argument_group("for --to paddle")
    paddle.add_argument(
        "--quant-type",
        choices=("weight_only_int8", "weight_only_int4"),
        default="",
        help="quantizes the layers' matrices by Paddle's rule",
    )
    paddle.add_argument(
        "--group-size",
        type=int,
        choices=(-1, 64, 128),
        default=-1,
        help="inputs of a matrix that share a scale (default -1: all)",
    )
    paddle.add_argument(
        "--packing",
        choices=PADDLE_PACKINGS[1:],
        default="sm75",
        help="of quantized matrices; sm70 for V100 (default sm75)",
    )
    paddle.add_argument("--ranks", type=integer(1, 64), default=1, help="tensor parallelism, in rank_N/ (default 1)")
    paddle.add_argument(
        "--context", type=integer(1), default=0, help="longest sequence, in tokens (default: the model's)"
    )
    return flags


def export(arguments: list[str]) -> int:
    from oarlock_runtime.cli.download import local_path
    from oarlock_runtime.models.checkpoint import open_checkpoint
    from oarlock_runtime.models.export import PaddleOptions, export_model
    from oarlock_runtime.models.paddle.parts import Scheme

    flags = export_parser().read(arguments)
    checkpoint = open_checkpoint(local_path(flags.model), flags.paddle_packing)
    output = Path(flags.output).expanduser()
    scheme = Scheme(flags.dtype, flags.quant_type, flags.group_size, flags.packing)
    options = PaddleOptions(scheme, flags.ranks, flags.context)
    unit = "ranks" if flags.to == "paddle" else "tensors"
    with progress(f"writing {output.name}, {unit}") as shown:
        export_model(checkpoint, output, flags.to, options, shown.update)
    say(f"wrote {output}, {human_bytes(sum(file.stat().st_size for file in output.rglob('*') if file.is_file()))}")
    return 0


def random_parser() -> Parser:
    from oarlock_runtime.models.presets import PRESETS

    epilog = "Presets: " + ", ".join(PRESETS) + "."
    flags = Parser("model random", "Writes a model of random weights: the same seed gives the same model.", epilog)
    flags.add_argument("config", help="a preset, a config.json, or a directory with one")
    flags.add_argument("--to", choices=("gguf", "safetensors"), required=True, help="container to write")
    flags.add_argument(
        "-o", "--output", required=True, metavar="PATH", help="the GGUF file, or the directory, to write"
    )
    flags.add_argument("--seed", type=integer(0), default=0, help="default 0")
    flags.add_argument("--dtype", default="bf16", help="of the weights: bf16, f16, f32; for GGUF q8_0, q4_0, q4_1 too")
    flags.add_argument("--tokenizer", default="", help="a model (path or URI) whose tokenizer is copied")
    return flags


def random(arguments: list[str]) -> int:
    from oarlock_runtime.cli.download import local_path
    from oarlock_runtime.models.presets import read_config
    from oarlock_runtime.models.random import write_random_model

    flags = random_parser().read(arguments)
    tokenizer = local_path(flags.tokenizer) if flags.tokenizer else None
    output = Path(flags.output).expanduser()
    with progress(f"writing {output.name}, weights") as shown:
        write_random_model(
            read_config(flags.config),
            output,
            flags.to,
            seed=flags.seed,
            dtype=flags.dtype,
            tokenizer=tokenizer,
            progress=shown.update,
        )
    size = sum(file.stat().st_size for file in ([output] if output.is_file() else output.iterdir()))
    say(f"wrote {output}, {human_bytes(size)}")
    return 0


def run(arguments: list[str]) -> int:
    actions = {"inspect": inspect, "export": export, "random": random}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] not in actions:
        raise UsageError(f"oarlock model has no {arguments[0]!r}; give one of {', '.join(actions)}")
    return actions[arguments[0]](arguments[1:])
