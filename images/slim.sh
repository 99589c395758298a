#!/bin/sh
# Run in a build stage: takes out of the virtual environment $1 what an image doesn't need, and compiles the rest to bytecode,
# because the image's files are read-only when it runs. A second word is a pattern of files that stay uncompiled.
set -eu
venv=$1
"$venv/bin/pip" uninstall --yes --quiet setuptools
find "$venv" -name tests -type d -path '*/site-packages/*/tests' -prune -exec rm -rf {} +
# Of UCX the libraries that are loaded: no static ones, no programs, no headers, and not each three times.
for ucx in "$venv"/lib/python3*/site-packages/libucx; do
  [ -d "$ucx" ] || continue
  rm -rf "$ucx/bin" "$ucx/include"
  find "$ucx/lib" \( -name '*.a' -o -name '*.la' -o -name '*.so.*.*.*' -o -name '*perftest*' -o -name pkgconfig -o -name cmake \) \
    -prune -exec rm -rf {} +
  find "$ucx/lib" -name '*.so.0' | while read -r file; do ln -sf "$(basename "$file")" "${file%.0}"; done
done
find "$venv" -name __pycache__ -prune -exec rm -rf {} +
# Some packages carry files for other versions of Python; that those don't compile is no error.
"$venv/bin/python" -m compileall -q "$venv/lib" -x "${2:-^$}" || true
