"""Reads the command line and hands over to the command. Errors a user can act on are one line, without a traceback."""

import argparse
import asyncio
import logging
import sys
from pathlib import Path

import yaml

from oarlock_operator.api.deployment import SpecError
from oarlock_operator.api.document import Document, DocumentError
from oarlock_operator.render.settings import RenderSettings

_DEFAULTS = RenderSettings()
_TARGET = "a YAML file with one ModelDeployment, - for standard input, or a model: hf://…, https://…, pypi://…, a path"
_SET = "change a field of the spec, for example --set server.maxSequences=8 (may be given again)"


def main(arguments: list[str] | None = None) -> int:
    """Runs one command line and returns its exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    parser = _parser()
    values, unknown = parser.parse_known_args(arguments)
    if unknown:
        hint = "; settings are fields of the spec: --set FIELD=VALUE" if hasattr(values, "set") else ""
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    logging.basicConfig(level=values.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(max(logging.WARNING, logging.getLogger().level))
    try:
        return int(values.command(values))
    except KeyboardInterrupt:
        return 130
    except (SpecError, DocumentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("oarlock-operator", description="Serves language models from ModelDeployments.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="look after the ModelDeployments of a cluster")
    run.add_argument("--namespace", action="append", default=[], help="watch only this one (may be given again)")
    run.add_argument("--lease-namespace", default="oarlock-system", help="where the lease of the leader is kept")
    run.add_argument("--no-leader-election", action="store_true", help="only where no second operator can run")
    run.add_argument("--host", default="0.0.0.0", help="address of health and metrics")
    run.add_argument("--port", type=int, default=8080, help="port of health and metrics")
    run.set_defaults(command=_run)

    release = commands.add_parser("release", help="before an uninstall: take the finalizer off all ModelDeployments")
    release.add_argument("--namespace", action="append", default=[], help="only in this one (may be given again)")
    release.add_argument("--lease-namespace", default="oarlock-system", help="where the lease of the leader is kept")
    release.add_argument("--deployment", default="", help="the operator's Deployment, which is scaled to nothing first")
    release.add_argument("--log-level", default="info", help=argparse.SUPPRESS)
    release.set_defaults(command=_release)

    render = commands.add_parser("render", help="print the objects that a ModelDeployment is turned into")
    render.set_defaults(command=_render)

    local = commands.add_parser("local", help="serve a ModelDeployment on this machine, without Kubernetes")
    local.add_argument("--port", type=int, default=9965, help="port of the API on 127.0.0.1")
    local.add_argument("--state", type=Path, help="folder for models and logs (default ~/.cache/oarlock/local)")
    local.set_defaults(command=_local)

    for command in (render, local):
        command.add_argument("target", metavar="FILE", help=_TARGET)
        command.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help=_SET)

    for command in (run, render, local):
        command.add_argument("--cpu-image", default=_DEFAULTS.cpu_image, help="image of the server for CPUs")
        command.add_argument("--gpu-image", default=_DEFAULTS.gpu_image, help="image of the server for GPUs")
        command.add_argument("--allow-host-path", action="store_true", help="let specs mount folders of the node")
        command.add_argument("--network-policy", action="store_true", help="make a NetworkPolicy per deployment")
        levels = ("debug", "info", "warning", "error")
        command.add_argument("--log-level", choices=levels, default="info" if command is run else "warning")
    return parser


def _settings(values: argparse.Namespace) -> RenderSettings:
    return RenderSettings(values.cpu_image, values.gpu_image, values.allow_host_path, values.network_policy)


def _run(values: argparse.Namespace) -> int:
    from oarlock_operator.controller.run import Options, run

    options = Options(
        namespaces=tuple(values.namespace),
        lease_namespace=values.lease_namespace,
        leader_election=not values.no_leader_election,
        host=values.host,
        port=values.port,
        render=_settings(values),
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
    objects = standing_objects(deployment, settings)
    for group in range(deployment.spec.replicas):
        objects += [
            pod(deployment, group, group + 1, rank, settings) for rank in range(deployment.spec.parallelism.nodes)
        ]
    yaml.safe_dump_all(objects, sys.stdout, sort_keys=False)
    return 0


def _local(values: argparse.Namespace) -> int:
    from oarlock_operator.local.runner import run

    return asyncio.run(run(_document(values), _settings(values), values.port, values.state))


def _document(values: argparse.Namespace) -> Document:
    return Document(values.target, tuple(values.set))
