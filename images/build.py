"""Builds the images with buildah, without a registry or a daemon: `python3 images/build.py operator runtime-cpu`.

Each ends as an OCI archive in --out, to be pushed, or loaded into nodes. Its size is printed; one that has grown too
large is an error. Without --base the base is Python's slim image; --debootstrap makes one from Debian's packages, for
machines that reach no registry. runtime-cuda needs no GPU to be built.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# The most that each may add to its base, in MB unpacked. Of runtime-cuda cuBLASLt is 540 and NCCL 345.
IMAGES = {"operator": 150, "runtime-cpu": 350, "runtime-cuda": 1250}
_SUITE = "bookworm"
_PACKAGES = "python3,python3-venv,ca-certificates"
_STEP_SECONDS = 3600


class BuildError(Exception):
    """A step failed; the text says which and why."""


def main() -> int:
    parser = argparse.ArgumentParser("images/build.py", description=__doc__, formatter_class=_Text)
    parser.add_argument("images", nargs="+", choices=IMAGES, metavar="IMAGE", help=", ".join(IMAGES))
    parser.add_argument("--base", help="image that the final stages start from; it must have Python 3.11 or newer")
    parser.add_argument("--debootstrap", action="store_true", help="make the base from Debian's packages (needs root)")
    parser.add_argument("--tag", default=_version(), help="tag of the images (default: the project's version)")
    parser.add_argument("--prefix", default="localhost/oarlock", help="name before /operator and the others")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "images", help="folder for the archives")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers at a time")
    parser.add_argument("--architectures", default="80;90a", help="runtime-cuda: compute capabilities (default 80;90a)")
    parser.add_argument(
        "--host-certificates", action="store_true", help="trust the host's authorities in the build, as its proxies ask"
    )
    values = parser.parse_args()
    try:
        build(values)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class _Text(argparse.RawDescriptionHelpFormatter):
    pass


def build(values: argparse.Namespace) -> None:
    if shutil.which("buildah") is None:
        raise BuildError("buildah is not installed (Debian: apt install buildah)")
    values.out.mkdir(parents=True, exist_ok=True)
    base = values.base
    if values.debootstrap:
        base = _debootstrapped(values.out)
    for name in values.images:
        begin = time.monotonic()
        image = f"{values.prefix}/{name}:{values.tag}"
        flags = ["--isolation", "chroot", "--build-arg", f"JOBS={values.jobs}"]
        if name == "runtime-cuda":
            flags += ["--build-arg", f"ARCHITECTURES={values.architectures}"]
        if base:
            flags += ["--build-arg", f"BASE={base}"]
        if values.host_certificates:
            flags += ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
        file = ROOT / "images" / f"Containerfile.{name}"
        ignored = ROOT / "images" / "containerignore"
        _buildah("build", *flags, "--ignorefile", ignored, "--file", file, "--tag", image, ROOT)
        archive = values.out / f"{name}.tar"
        archive.unlink(missing_ok=True)
        _buildah("push", image, f"oci-archive:{archive}:{image}")
        whole, added = _sizes(archive)
        print(
            f"{image}: {archive} ({archive.stat().st_size / 1e6:.0f} MB packed), {time.monotonic() - begin:.0f} s; "
            f"unpacked {whole:.0f} MB, {added:.0f} over its base of at most {IMAGES[name]}",
            file=sys.stderr,
        )
        if added > IMAGES[name]:
            raise BuildError(f"{name} adds {added:.0f} MB to its base; at most {IMAGES[name]} are wanted")


def _sizes(archive: Path) -> tuple[float, float]:
    """MB of all files in an image, and of those that the last layer, ours, has: all steps of a stage make one layer."""
    with tarfile.open(archive) as outer:

        def blob(digest: str) -> Any:
            file = outer.extractfile("blobs/" + digest.replace(":", "/"))
            assert file is not None
            return file

        index = outer.extractfile("index.json")
        assert index is not None
        manifest = json.load(blob(json.load(index)["manifests"][0]["digest"]))
        sizes = []
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"]), mode="r|*") as files:
                sizes.append(sum(file.size for file in files) / 1e6)
    return sum(sizes), sizes[-1]


def _debootstrapped(out: Path) -> str:
    """An image from Debian's packages; made once."""
    name = f"localhost/oarlock/base:{_SUITE}"
    if subprocess.run([*_STORAGE, "inspect", "--type", "image", name], capture_output=True).returncode == 0:
        return name
    if shutil.which("debootstrap") is None:
        raise BuildError("debootstrap is not installed (Debian: apt install debootstrap)")
    tree = out / "base"
    shutil.rmtree(tree, ignore_errors=True)
    _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, tree, *_mirror())
    for folder in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(tree / folder, ignore_errors=True)
    container = _buildah("from", "scratch").strip()
    _buildah("copy", "--quiet", container, tree, "/")
    _buildah("commit", "--quiet", container, name)
    _buildah("rm", container)
    shutil.rmtree(tree)
    return name


def _mirror() -> list[str]:
    """The Debian mirror that this machine's apt uses, which a network without a way out may have of its own."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Label: Debian"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        return []
    return done.stdout.split()[:1]


_STORAGE = ("buildah", "--storage-driver", "vfs")


def _buildah(*arguments: str | Path) -> str:
    return _run(*_STORAGE, *arguments)


def _run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_STEP_SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{' '.join(words[:4])}: not done after {_STEP_SECONDS} s") from None
    if done.returncode:
        raise BuildError(f"{' '.join(words[:4])} …:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def _version() -> str:
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert found is not None
    return found[1]


if __name__ == "__main__":
    sys.exit(main())
