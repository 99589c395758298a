"""`download_model.py` as PaddleNLP has it: fetches a ready-made static-graph model. Runs in the user's process.

It exits with 1 when any file could not be had, resumes what was begun, and takes another server by --base_url.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from oarlock_runtime.cli.download import shown_download
from oarlock_runtime.errors import OarlockError
from oarlock_runtime.models.errors import SourceError
from oarlock_runtime.models.sources import FetchLimits
from oarlock_runtime.models.sources.download import Downloader
from oarlock_runtime.models.sources.paddle import BASE_URL, TAG, PaddleAddress, fetch_paddle, is_to_check, server_of
from oarlock_runtime.models.sources.paddle_catalogue import CATALOGUE, DRAFT, Host, part_for
from oarlock_runtime.models.sources.progress import Meter

DEFAULT = "deepseek-ai/DeepSeek-R1/weight_only_int4"
LIMITS = FetchLimits()


def main(arguments: Sequence[str] | None = None, limits: FetchLimits = LIMITS) -> int:
    """Fetches what the command line asks for; the exit code."""
    values = _parser().parse_args(arguments)
    if values.list:
        for model in CATALOGUE:
            print(f"{model.name}  {' '.join(model.parts)}")
        return 0
    if values.nnodes < 1:
        print(f"download_model.py: --nnodes={values.nnodes} must be at least 1", file=sys.stderr)
        return 2
    server = server_of(os.environ) | ({"base_url": values.base_url} if values.base_url else {})
    try:
        part = part_for(values.model_name, Host(values.nnodes, values.mode == "master"))
        wanted = [(PaddleAddress(values.model_name, part, **server), Path(values.dir) / values.model_name)]
    except SourceError as error:
        print(f"download_model.py: {error}", file=sys.stderr)
        return 2
    if values.speculate_model_path:
        wanted.append((PaddleAddress(values.model_name, DRAFT, **server), Path(values.speculate_model_path)))
    failed = 0
    for address, folder in wanted:
        try:
            _fetch(address, folder, limits)
        except OarlockError as error:
            failed += 1
            print(f"download_model.py: {error}", file=sys.stderr)
    return 1 if failed else 0


def _fetch(address: PaddleAddress, folder: Path, limits: FetchLimits) -> None:
    """Fetches one part into `folder`, with a line for each file."""
    entry = address.entry_in(folder.absolute())
    with (
        shown_download() as progress,
        entry.locked(limits.lock_s, lambda: print(f"waiting for another download into {folder}", flush=True)),
        Downloader(limits, Meter(progress)) as downloader,
    ):
        fetch_paddle(address, entry, downloader, check_present=is_to_check(os.environ), told=_tell)


def _tell(what: str, error: SourceError | None) -> None:
    print(f"[✓] Success: {what}" if error is None else f"[\N{MULTIPLICATION SIGN}] Failed: {what}", flush=True)
    if error is not None:
        print(f"    {error}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="download_model.py",
        description="Fetches a ready-made static-graph model of PaddleNLP's.",
        allow_abbrev=False,
    )
    flags.add_argument("-m", "--model_name", default=DEFAULT, help=f"a name of the catalogue (default {DEFAULT})")
    flags.add_argument("-d", "--dir", default="downloads", help="files go to DIR/MODEL_NAME/ (default downloads)")
    flags.add_argument("-n", "--nnodes", type=int, default=1, help="hosts that serve it together (default 1)")
    flags.add_argument(
        "-M",
        "--mode",
        choices=("master", "slave"),
        default="master",
        help="with --nnodes 2: which host (default master)",
    )
    flags.add_argument("-s", "--speculate_model_path", default=None, help="fetch the draft too, into this directory")
    flags.add_argument(
        "-b",
        "--base_url",
        default=None,
        help=f"a mirror: its files are at BASE_URL/TAG/NAME, where TAG is $tag, or {TAG} "
        f"(default $PADDLE_MODELS_URL, or {BASE_URL})",
    )
    flags.add_argument("-l", "--list", action="store_true", help="print the catalogue and the parts of each model")
    return flags


if __name__ == "__main__":
    sys.exit(main())
