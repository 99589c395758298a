#!/usr/bin/env bash
# `make gpu-bench`: decode steps, prompts and an offline run of two model shapes with dummy weights on this machine's GPU; see
# build.sh for what it needs. Arguments: the shapes, presets of `oarlock model random`. Floors use an H200's figures unless
# BANDWIDTH (GB/s) and RATE (TFLOP/s) say otherwise.
source "$(dirname "$0")/build.sh"
for shape in "${@:-llama-8b qwen2.5-0.5b}"; do
  for preset in $shape; do
    common=(--model "$preset" --load-format dummy --device cuda)
    "$python" -m oarlock_runtime.cli bench decode "${common[@]}" --batch 1,32,128,256 --context 512 --bandwidth "${BANDWIDTH:-4625}"
    "$python" -m oarlock_runtime.cli bench prefill "${common[@]}" --tokens 128,1024,8192 --rate "${RATE:-788}"
    "$python" -m oarlock_runtime.cli bench "${common[@]}" --input 128 --output 128 --concurrency 256,1024 --requests 1024 --repeats 1
  done
done
