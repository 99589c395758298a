# Sourced by test.sh and bench.sh: builds the core with CUDA into build/gpu-python for the Python at hand and puts the
# package, that core in it, on PYTHONPATH. Needs cmake, ninja, a C++ compiler and pybind11, and no network.
#   PREBUILT          a build folder made elsewhere with -DOARLOCK_CUDA=ON: only the bindings are compiled (20 s)
#   CUDA_ROOT         the toolkit, where it is neither in Python's packages nor in /usr/local/cuda
#   PYTHON            default python3
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
out=build/gpu-python
mkdir -p build
options=(-DOARLOCK_CHECKS=OFF "-DPython_EXECUTABLE=$(command -v "$python")")
options+=("-Dpybind11_DIR=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')")
[[ -z ${CUDA_ROOT:-} ]] || options+=("-DOARLOCK_CUDA_ROOT=$CUDA_ROOT")
if [[ -n ${PREBUILT:-} ]]; then
  options+=("-DOARLOCK_PREBUILT=$(realpath "$PREBUILT")")
else
  options+=(-DOARLOCK_CUDA=ON)
fi
cmake -S . -B "$out" -G Ninja "${options[@]}" >"$out.log" 2>&1 || { cat "$out.log"; exit 1; }
ninja -C "$out" _C >>"$out.log" 2>&1 || { tail -40 "$out.log"; exit 1; }
rm -rf "$out/package"
mkdir -p "$out/package"
cp -r runtime/oarlock_runtime "$out/package/"
rm -f "$out"/package/oarlock_runtime/_C.*.so
cp "$out"/csrc/bindings/_C*.so "$out/package/oarlock_runtime/"
export PYTHONPATH=$PWD/$out/package:$PWD/runtime/tests${PYTHONPATH:+:$PYTHONPATH}
"$python" -c 'from oarlock_runtime import _C; assert "cuda" in _C.devices()'
