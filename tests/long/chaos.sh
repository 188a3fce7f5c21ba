#!/usr/bin/env bash
# A run in a SLURM of virtual nodes with N random faults (SEED): a rank killed, frozen, slow or with a NaN in a GEMM, a
# full disk, preemption. Its final weights equal those of an undisturbed run to the last bit.
# usage: tests/long/chaos.sh [N=20] [SEED] [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
export TRANSMAMBA_TRIALS="${1:-20}" TRANSMAMBA_SEED="${2:-$RANDOM}"
echo "$TRANSMAMBA_TRIALS faults, seed $TRANSMAMBA_SEED"
"${3:-build/cpu}/tests/slurm/slurm_test" --gtest_filter='*/Chaos'
