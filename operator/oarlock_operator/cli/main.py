"""Reads the command line and hands over to the command. Errors a user can act on are one line, without a traceback."""

import argparse
import asyncio
import difflib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import yaml

from oarlock_operator.api.deployment import SpecError
from oarlock_operator.api.document import Document, DocumentError
from oarlock_operator.render.settings import RenderSettings

_DEFAULTS = RenderSettings()
_TARGET = (
    "a YAML file with one ModelDeployment, - for standard input, or a model: hf://…, paddle://…, https://…, pypi://…, "
    "a .gguf file, a folder"
)
_SET = "change a field of the spec, for example --set server.maxSequences=8 (may be given again)"
_LEVELS = ("debug", "info", "warning", "error")
_SYSTEM = "oarlock-system"


class _Parser(argparse.ArgumentParser):
    """Takes no abbreviations, and says in one line what is wrong with a command line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"oarlock-operator: {message} (see {self.prog} --help)\n")

    def refuse(self, word: str) -> NoReturn:
        """Ends with an error for a word that means nothing here; the nearest flag is offered."""
        near = difflib.get_close_matches(word.split("=")[0], self._option_string_actions, n=1)
        if near:
            self.error(f"unknown argument {word!r}; did you mean {near[0]}?")
        fields = "--set" in self._option_string_actions
        self.error(f"unknown argument {word!r}" + "; settings are fields of the spec: --set FIELD=VALUE" * fields)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    values, unknown = _parser().parse_known_args(arguments)
    if unknown:
        values.parser.refuse(unknown[0])
    logging.basicConfig(level=values.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        return int(values.command(values))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`render | head`): nothing more can be said, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    except (SpecError, DocumentError) as error:
        text = str(error)
    print(f"oarlock-operator: {text}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="oarlock-operator", description="Serves language models from ModelDeployments.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, do: Callable[[argparse.Namespace], int], what: str, log_level: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        found.set_defaults(parser=found, command=do)
        found.add_argument(
            "--log-level", choices=_LEVELS, default=log_level, help=f"what is logged (default {log_level})"
        )
        return found

    run = add("run", _run, "look after the ModelDeployments of a cluster", "info")
    run.add_argument("--namespace", action="append", default=[], help="watch only this one (may be given again)")
    run.add_argument("--no-leader-election", action="store_true", help="only where no second operator can run")
    run.add_argument("--host", default="0.0.0.0", help="address of health and metrics (default 0.0.0.0)")
    run.add_argument("--port", type=_port, default=8080, help="port of health and metrics (default 8080)")
    run.add_argument("--allow-host-path", action="store_true", help="let specs mount folders of the node")

    release = add("release", _release, "before an uninstall: take the finalizer off all ModelDeployments", "info")
    release.add_argument("--namespace", action="append", default=[], help="only in this one (may be given again)")
    release.add_argument("--deployment", default="", help="the operator's Deployment, which is scaled to nothing first")

    for of_cluster in (run, release):
        of_cluster.add_argument(
            "--lease-namespace", default=_SYSTEM, help=f"where the lease of the leader is kept (default {_SYSTEM})"
        )

    render = add("render", _render, "print the objects that a ModelDeployment is turned into", "warning")

    local = add("local", _local, "serve a ModelDeployment on this machine, without Kubernetes", "warning")
    local.add_argument("--port", type=_port, default=9965, help="port of the API on 127.0.0.1 (default 9965)")
    local.add_argument(
        "--state", type=Path, help="folder for models and logs (default ~/.cache/oarlock; logs in its folder local)"
    )

    for with_file in (render, local):
        with_file.add_argument("target", metavar="FILE", help=_TARGET)
        with_file.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=_SET)

    for with_pods in (run, render):
        for kind, image in (("cpu", _DEFAULTS.cpu_image), ("gpu", _DEFAULTS.gpu_image)):
            with_pods.add_argument(
                f"--{kind}-image",
                default=image,
                metavar="IMAGE",
                help=f"the server's for {kind.upper()}s (default {image})",
            )
        with_pods.add_argument("--network-policy", action="store_true", help="make NetworkPolicies")
    return parser


def _port(text: str) -> int:
    """An argparse type: a port; 0 takes a free one."""
    if not (text.isascii() and text.isdigit() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535")
    return int(text)


def _settings(values: argparse.Namespace) -> RenderSettings:
    return RenderSettings(values.cpu_image, values.gpu_image, network_policy=values.network_policy)


def _run(values: argparse.Namespace) -> int:
    from oarlock_operator.controller.run import Options, run

    options = Options(
        namespaces=tuple(values.namespace),
        lease_namespace=values.lease_namespace,
        leader_election=not values.no_leader_election,
        host=values.host,
        port=values.port,
        render=replace(_settings(values), allow_host_path=values.allow_host_path),
    )
    return asyncio.run(run(options))


def _release(values: argparse.Namespace) -> int:
    from oarlock_operator.controller.uninstall import release

    return asyncio.run(release(tuple(values.namespace), values.lease_namespace, values.deployment))


def _render(values: argparse.Namespace) -> int:
    from oarlock_operator.render.objects import standing_objects
    from oarlock_operator.render.pod import pod

    _, deployment = _document(values).load()
    settings = _settings(values)
    objects = standing_objects(deployment, settings, range(deployment.spec.replicas))
    for group in range(deployment.spec.replicas):
        objects += [
            pod(deployment, group, group + 1, rank, settings) for rank in range(deployment.spec.parallelism.nodes)
        ]
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False)
    return 0


def _local(values: argparse.Namespace) -> int:
    from oarlock_operator.local.runner import run

    return asyncio.run(run(_document(values), values.port, values.state))


def _document(values: argparse.Namespace) -> Document:
    return Document(values.target, tuple(values.set))
