#!/bin/sh
# sanitize.sh PROGRAM [GTEST_FILTER]
# Runs a CUDA test program under compute-sanitizer's memcheck and racecheck; fails where either finds anything, and
# prints the findings. Without a filter, of cuda_ops_test:
# - memcheck: every test but the two of very long tensors, whose kernels smaller tests run as well; the other sizes are
#   small and odd;
# - racecheck: of these, not the matrix products of cuBLAS nor the scan on wgmma, whose kernels refill shared memory by bulk
#   copies behind an mbarrier: it takes each refill for a race with the reads before. Nor the scan for every GPU, for
#   which it needs more than 200 s. Attention in cases of up to 100 tokens, which take it 155 s.
# Parts of the tests run side by side (SANITIZE_PARTS of them), for the tools keep one processor busy each.
set -eu
program=$1
long='CudaLong.*:*IndicesAreSixtyFourBits'
scan='CudaSsd.ForwardAndBackward:CudaSsd.KernelsForEveryGpu:CudaSsd.FromZero:CudaSsd.Accumulates*'
scan=$scan:CudaSsd.SegmentsOfSeveralChunks:CudaSsd.ManyChunks:CudaSsd.ExtremeDecays:CudaSsd.StatesInPlace
parts=${SANITIZE_PARTS:-8}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
failed=
for tool in memcheck racecheck; do
  case $tool in
    memcheck) filter=${2:-"-$long"} ;;
    racecheck) filter=${2:-"-$long:CudaLinear.*:CudaGraph.*:CudaAttention.LargeScores:$scan"}; export TMAMBA_TEST_SMALL=1 ;;
  esac
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
    # A part without tests runs no kernel, which the tools call an error.
    if ! wait "$(cat "$logs/pid.$part")" && ! grep -q '^\[==========\] Running 0 tests' "$logs/$tool.$part"; then
      failed="$failed $tool"
      grep -E '^=========|FAILED|Failure' "$logs/$tool.$part" | head -n 60
    fi
    part=$((part + 1))
  done
  passed=$(cat "$logs/$tool".* | grep -c '^\[       OK' || true)
  echo "$tool: $passed tests passed"
  [ "$passed" -gt 0 ] || failed="$failed $tool(no test)"
done
[ -z "$failed" ] || { echo "failed under:$failed" >&2; exit 1; }
