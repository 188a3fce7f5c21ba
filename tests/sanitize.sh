#!/bin/sh
# sanitize.sh PROGRAM [GTEST_FILTER]
# Runs a CUDA test program under compute-sanitizer's memcheck and racecheck; fails where either finds anything, and
# prints the findings. Without a filter: cuda_ops_test's every test but the two of very long tensors, whose kernels
# smaller tests run as well. Its other sizes are small and odd. Parts of the tests run side by side (SANITIZE_PARTS of
# them), for the tools keep one processor busy each.
set -eu
program=$1
filter=${2:--CudaLong.*:*IndicesAreSixtyFourBits}
parts=${SANITIZE_PARTS:-8}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=
for tool in memcheck racecheck; do
  part=0
  while [ "$part" -lt "$parts" ]; do
    GTEST_TOTAL_SHARDS=$parts GTEST_SHARD_INDEX=$part OMP_NUM_THREADS=1 TMAMBA_TEST_ONCE=1 \
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" --gtest_filter="$filter" \
      > "$logs/$tool.$part" 2>&1 &
    echo $! > "$logs/pid.$part"
    part=$((part + 1))
  done
  part=0
  while [ "$part" -lt "$parts" ]; do
    if ! wait "$(cat "$logs/pid.$part")"; then
      failed="$failed $tool"
      grep -E '^=========|FAILED|Failure' "$logs/$tool.$part" | head -n 60
    fi
    part=$((part + 1))
  done
  passed=$(cat "$logs/$tool".* | grep -c '^\[       OK')
  echo "$tool: $passed tests passed"
  [ "$passed" -gt 0 ] || failed="$failed $tool(no test)"
done
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
