#!/usr/bin/env bash
# A run saved on each of six layouts resumes on each of the five others: 30 pairs, float64, losses equal to 1e-12.
# usage: tests/long/resharding.sh [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
for shift in 0 1 2 3 4; do
  echo "each layout to the one $((shift + 1)) after it"
  TRANSMAMBA_SEED=$shift OMP_NUM_THREADS=1 "${1:-build/cpu}/tests/launch/launch_resume_test" --gtest_filter='Resume.Every*'
done
