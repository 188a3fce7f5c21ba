#!/usr/bin/env bash
# N SIGKILLs at random instants of saving and pruning; then 10 N random bit flips, truncations, swaps and missing files.
# usage: tests/long/crashes.sh [N=1000] [SEED] [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
build="${3:-build/cpu}"
export TRANSMAMBA_SEED="${2:-$RANDOM}"
echo "seed $TRANSMAMBA_SEED"
TRANSMAMBA_TRIALS="${1:-1000}" "$build/tests/data/data_checkpoint_crash_test" --gtest_filter='Crash.Killed*'
TRANSMAMBA_TRIALS="$((10 * ${1:-1000}))" "$build/tests/data/data_checkpoint_damage_test" --gtest_filter='*Random*'
