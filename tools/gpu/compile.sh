#!/usr/bin/env bash
# `make cuda-build`: compiles the CUDA kernels, their checks and benches and the CUDA executor into build/cuda-kernels. No GPU is
# needed. The compiler is CUDA_ROOT's, else the packages' of PYTHON, else they are fetched into build/cuda-toolkit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=build/cuda-kernels toolkit=$PWD/build/cuda-toolkit
mkdir -p build
fetch() { "$python" -m pip install --quiet --disable-pip-version-check --target "$toolkit" "$@"; }
packaged='import importlib.util as u, os; s = u.find_spec("nvidia"); p = [os.path.join(x, "cu13") for x in (s.submodule_search_locations if s else [])]; print(next((x for x in p if os.path.exists(os.path.join(x, "bin", "nvcc"))), ""))'
root=${CUDA_ROOT:-$("$python" -c "$packaged")}
if [[ -z $root ]]; then
  root=$toolkit/nvidia/cu13
  if [[ ! -x $root/bin/nvcc ]]; then
    wanted='import tomllib; print("\n".join(tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cuda"]))'
    mapfile -t packages < <("$python" -c "$wanted")
    fetch "${packages[@]}"
  fi
fi
export PATH=$PATH:$PWD/.venv/bin:$toolkit/bin PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$toolkit
missing=()
for tool in cmake ninja; do command -v "$tool" >/dev/null || missing+=("$tool"); done
((${#missing[@]} == 0)) || fetch "${missing[@]}"
cmake -S . -B "$out" -G Ninja -DOARLOCK_CUDA=ON -DOARLOCK_BINDINGS=OFF "-DOARLOCK_CUDA_ROOT=$root" "$@" >"$out.log" 2>&1 || {
  cat "$out.log"
  exit 1
}
SECONDS=0
ninja -C "$out" oarlock_model oarlock_comm cuda_check cuda_bench cuda_ranks_check >>"$out.log" 2>&1 || {
  tail -60 "$out.log"
  exit 1
}
echo "compiled in $SECONDS s: $out/csrc/cuda"
