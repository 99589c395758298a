#!/usr/bin/env bash
# Runs the CUDA kernels' checks and benches on a machine with a GPU; needs no network.
#   csrc/cuda/run_checks.sh BUILD [check|sanitize|bench|all]
# BUILD is a CMake build folder made with -DOARLOCK_CUDA=ON, here or on another x86-64 machine. cuBLASLt is taken from
# LD_LIBRARY_PATH, the build, or the toolkit in /usr/local/cuda.
set -euo pipefail
build=${1:?a build folder is wanted}
what=${2:-all}
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/usr/local/cuda/targets/x86_64-linux/lib
programs=$build/csrc/cuda
case $what in check | sanitize | bench | all) ;; *) sed -n 2,5p "$0"; exit 2 ;; esac
gpus=$(nvidia-smi -L | wc -l)
# On a Hopper GPU both kinds of kernels are checked, its own and those of older cards.
for kernels in auto portable; do
  export OARLOCK_CUDA_KERNELS=$kernels
  if [[ $what == check || $what == all ]]; then timeout 300 "$programs/cuda_check"; fi
  if [[ $what == sanitize || $what == all ]]; then
    for part in elementwise attention sampler linear; do
      timeout 600 compute-sanitizer --tool memcheck --error-exitcode 9 "$programs/cuda_check" $part quick
      timeout 600 compute-sanitizer --tool racecheck --error-exitcode 9 "$programs/cuda_check" $part quick
    done
  fi
done
unset OARLOCK_CUDA_KERNELS
if [[ ($what == check || $what == all) && $gpus -gt 1 ]]; then
  timeout 120 "$programs/cuda_ranks_check" check "$((gpus < 8 ? gpus : 8))" peer
fi
if [[ $what == bench || $what == all ]]; then
  timeout 300 "$programs/cuda_bench"
  if ((gpus > 1)); then timeout 120 "$programs/cuda_ranks_check" bench "$((gpus < 8 ? gpus : 8))" peer; fi
fi
