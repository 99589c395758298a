"""The flags that say how a model runs in the bench's own process."""

import argparse
from typing import cast

from oarlock_runtime.cli.arguments import integer
from oarlock_runtime.models.loading import QUANTIZATIONS, Quantization


def execution_flags(flags: argparse._ActionsContainer) -> None:
    """Adds --quantization (a list), --device, --dtype and the like to a parser or a group of it."""
    flags.add_argument(
        "--quantization",
        type=quantizations,
        default=["auto"],
        help=f"how weights are held, one or several: {','.join(QUANTIZATIONS)} (default auto)",
    )
    flags.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what the model runs on (default cpu)")
    flags.add_argument(
        "--load-format",
        choices=("auto", "dummy"),
        default="auto",
        help="dummy: random weights, for a config.json or one of the presets of `oarlock model random`",
    )
    flags.add_argument(
        "--dtype", choices=("bf16", "f32", "f16"), default="bf16", help="of activations and KV (default bf16)"
    )
    flags.add_argument(
        "--no-graphs", action="store_true", help="on a GPU, launch every kernel of a decode step by itself"
    )
    flags.add_argument(
        "--no-overlap", action="store_true", help="on a GPU, plan a step only when the one before it has ended"
    )
    flags.add_argument("--threads", type=integer(0, 1024), default=0, help="default: one for each core")


def quantizations(text: str) -> list[Quantization]:
    """An argparse type: names of quantizations, separated by commas."""
    names: list[Quantization] = []
    for word in text.split(","):
        if word not in QUANTIZATIONS:
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(QUANTIZATIONS)}")
        names.append(cast(Quantization, word))
    return names
