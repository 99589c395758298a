"""Builds everything the cluster runs from Go modules, each pinned: about 10 minutes on two cores, once per version."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

from cluster import pause
from cluster.processes import ClusterError
from cluster.versions import (
    CONTAINERD,
    CONTAINERD_COMMANDS,
    ETCD,
    GO,
    INSTALLED,
    KUBERNETES,
    KUBERNETES_COMMANDS,
    bin_dir,
    missing,
    module_proxy,
)

_GO_TOOLCHAIN = "v0.0.1-go1.26.8"  # fetched where no Go is installed
_STEP_SECONDS = 3600
_LINK = "-s -w -X k8s.io/component-base/version.gitVersion=v1.{0} -X k8s.io/component-base/version.gitMajor=1"


def build() -> None:
    """Builds what is missing, and says how far it is."""
    if not missing():
        print(f"all binaries are in {bin_dir()}", file=sys.stderr)
        return
    bin_dir().mkdir(parents=True, exist_ok=True)
    builder = Builder(_go(), bin_dir().parent)
    builder.kubernetes()
    builder.tools("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, f"go.etcd.io/etcd/server/v3@{ETCD}")
    base = "github.com/containerd/containerd/v2"
    commands = {name: f"{base}/cmd/{name}" for name in CONTAINERD_COMMANDS}
    builder.tools("containerd", commands, *(f"{package}@{CONTAINERD}" for package in commands.values()))
    for name, package in INSTALLED.items():
        builder.install(name, package)
    builder.pause()


class Builder:
    """`folder` holds a module for each thing that can't be installed by version alone, and bin."""

    def __init__(self, go: str, folder: Path) -> None:
        self._go = go
        self._folder = folder
        self._bin = folder / "bin"

    def kubernetes(self) -> None:
        """k8s.io/kubernetes replaces its staging modules by folders of its own; as a dependency they are named."""
        if not missing(KUBERNETES_COMMANDS):
            return
        module = self._folder / "kubernetes"
        module.mkdir(exist_ok=True)
        version = f"v1.{KUBERNETES}"
        (module / "go.mod").write_text("module cluster\n\ngo 1.25.0\n")
        found = json.loads(self._run(module, "mod", "download", "-json", f"k8s.io/kubernetes@{version}"))
        staged = sorted(set(re.findall(r"^\s+(k8s\.io/[a-z-]+) => \./staging", Path(found["GoMod"]).read_text(), re.M)))
        packages = [f"k8s.io/kubernetes/cmd/{name}" for name in KUBERNETES_COMMANDS]
        lines = [
            "module cluster", "go 1.25.0", f"require k8s.io/kubernetes {version}",
            *(f"replace {name} => {name} v0.{KUBERNETES}" for name in staged),
            "tool (", *packages, ")", "",
        ]  # fmt: skip
        (module / "go.mod").write_text("\n".join(lines))
        self._run(module, "mod", "tidy")
        for name, package in zip(KUBERNETES_COMMANDS, packages, strict=True):
            self._build(module, name, package)

    def tools(self, folder: str, packages: dict[str, str], *modules: str) -> None:
        """Builds commands of modules that have replace lines, as tools of a module of ours."""
        if not missing(tuple(packages)):
            return
        module = self._folder / folder
        module.mkdir(exist_ok=True)
        (module / "go.mod").write_text("module cluster\n\ngo 1.25.0\n")
        for name in modules:
            self._run(module, "get", "-tool", name)
        for name, package in packages.items():
            self._build(module, name, package)

    def install(self, name: str, package: str) -> None:
        if missing((name,)):
            self._timed(name, self._folder, "install", *self._flags(), package)

    def pause(self) -> None:
        """The image that holds a pod's namespaces open, as an archive."""
        if missing((pause.PAUSE_ARCHIVE,)):
            module = self._folder / "pause"
            module.mkdir(exist_ok=True)
            (module / "go.mod").write_text("module pause\n\ngo 1.25.0\n")
            (module / "main.go").write_text(pause.PROGRAM)
            self._build(module, "pause", ".")
            pause.write_archive((self._bin / "pause").read_bytes(), self._bin / pause.PAUSE_ARCHIVE)

    def _build(self, module: Path, name: str, package: str) -> None:
        if missing((name,)):
            self._timed(name, module, "build", *self._flags(), "-o", str(self._bin / name), package)

    @staticmethod
    def _flags() -> list[str]:
        minor = f" -X k8s.io/component-base/version.gitMinor={KUBERNETES.split('.')[0]}"
        return ["-trimpath", "-ldflags", _LINK.format(KUBERNETES) + minor]

    def _timed(self, name: str, where: Path, *arguments: str) -> None:
        print(f"building {name} …", end=" ", file=sys.stderr, flush=True)
        begin = time.monotonic()
        self._run(where, *arguments)
        print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)

    def _run(self, where: Path, *arguments: str) -> str:
        environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(self._bin), "GOFLAGS": "-buildvcs=false"}
        try:
            done = subprocess.run(
                [self._go, *arguments],
                cwd=where,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_STEP_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"go {' '.join(arguments[:2])}: not done after {_STEP_SECONDS} s") from None
        if done.returncode:
            raise ClusterError(f"go {' '.join(arguments[:2])}:\n{done.stderr[-3000:]}")
        return done.stdout


def _go() -> str:
    """A Go toolchain that is new enough: the machine's, or one fetched from the module proxy."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is not None:
        said = subprocess.run([found, "version"], capture_output=True, text=True, timeout=60).stdout
        match = re.search(r"go1\.(\d+)", said)
        if match and int(match[1]) >= int(GO.split(".")[1]):
            return found
    folder = bin_dir().parent / _GO_TOOLCHAIN.removeprefix("v0.0.1-")
    program = folder / "bin" / "go"
    if not program.exists():
        _fetch_go(folder)
    return str(program)


def _fetch_go(folder: Path) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine())
    if machine is None:
        raise ClusterError(f"no Go toolchain is known for {platform.machine()}: install Go {GO} or newer")
    name = f"{_GO_TOOLCHAIN}.linux-{machine}"
    url = f"{module_proxy()}/golang.org/toolchain/@v/{name}.zip"
    print(f"fetching Go from {url}", file=sys.stderr)
    partial = folder.with_name(f"{folder.name}.zip")
    try:
        with urllib.request.urlopen(url, timeout=120) as answer, partial.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except OSError as error:
        raise ClusterError(f"{url}: {error}; or install Go {GO} or newer") from None
    unpacked = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unpacked, ignore_errors=True)
    with zipfile.ZipFile(partial) as archive:
        archive.extractall(unpacked)
    tree = unpacked / f"golang.org/toolchain@{name}"
    for program in [*(tree / "bin").iterdir(), *(tree / "pkg" / "tool").rglob("*")]:
        program.chmod(0o755)
    shutil.move(tree, folder)
    shutil.rmtree(unpacked)
    partial.unlink()
