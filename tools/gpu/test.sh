#!/usr/bin/env bash
# `make gpu-test`: the CUDA executor's tests on this machine's GPU; see build.sh for what it needs. Arguments go to pytest.
# TEST_MODEL=FILE, SmolLM2-135M-Instruct.Q4_1.gguf, adds the parity of real weights.
source "$(dirname "$0")/build.sh"
exec "$python" -m pytest -p no:cacheprovider --noconftest -W default runtime/tests/gpu "$@"
