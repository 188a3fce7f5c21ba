#!/usr/bin/env bash
# N random (stop step, layout, kind of stop) trials: a stopped run resumes bit-identically.
# usage: tests/long/resume.sh [N=200] [SEED] [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
export TRANSMAMBA_TRIALS="${1:-200}" TRANSMAMBA_SEED="${2:-$RANDOM}"
echo "$TRANSMAMBA_TRIALS trials, seed $TRANSMAMBA_SEED"
OMP_NUM_THREADS=1 "${3:-build/cpu}/tests/launch/launch_resume_test" --gtest_filter='*Stops*'
