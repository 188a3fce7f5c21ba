#!/usr/bin/env bash
# Measures the cost of one save per minute: trains a model of 200 MiB of state for M minutes, touches SAVE every minute,
# and prints
#   lost: the time for which saves blocked training, plus the time by which steps during a save took longer than the
#   median of the others, as a share of all time;
#   verification: bytes of a checkpoint per second of processor time.
# usage: tests/long/throughput.sh [M=10] [BUILD=build/cpu]
set -euo pipefail
cd "$(dirname "$0")/../.."
minutes="${1:-10}"
program="$(realpath "${2:-build/cpu}")/launch/transmamba"
text="$(realpath README.md)"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for _ in $(seq 100); do cat "$text"; done >text.txt
"$program" prepare text.txt --output data --tokenizer bytes >/dev/null
cat >run.toml <<TOML
[model]
dim = 512
heads = 8
layers = 6
ffn = 1408
schedule = [0, 64, 128]
chunk = 32
[data]
train = "data/train.h5"
seq_len = 128
[train]
steps = 1000000
global_batch = 2
[run]
dir = "run"
TOML
"$program" train run.toml >log 2>&1 &
job=$!
for _ in $(seq "$minutes"); do
  sleep 60
  touch run/SAVE
done
sleep 20
touch run/STOP
wait "$job" || [ $? -eq 85 ] || { cat log; exit 1; }

number() { sed -nE "s/.*\"$1\":([0-9.e+-]+).*/\1/p"; }
grep '"event":"checkpoint"' run/events.jsonl | head -n "$minutes" >saves
paste <(number step <saves) <(number whole_at <saves) <(number stall_seconds <saves) <(number bytes <saves) >spans
paste <(number step <run/metrics.jsonl) <(number step_ms <run/metrics.jsonl) >steps
# The first step warms up; the last save is the one at the end of the run.
quiet="$(awk 'NR == FNR {from[NR] = $1; to[NR] = $2; n = NR; next}
  FNR > 1 {inside = 0; for (i = 1; i <= n; ++i) inside += $1 > from[i] && $1 <= to[i]; if (!inside) print $2}' spans steps |
  sort -n | awk '{v[NR] = $1} END {print v[int((NR + 1) / 2)]}')"
awk -v quiet="$quiet" 'NR == FNR {from[NR] = $1; to[NR] = $2; n = NR; stall += $3; if ($3 > most) most = $3; bytes = $4; next}
  FNR > 1 {all += $2; for (i = 1; i <= n; ++i) if ($1 > from[i] && $1 <= to[i]) {longer += $2 - quiet; ++beside}}
  END {printf "%d saves of %.0f MiB in %.0f s of steps of %.1f ms: blocked %.1f ms per save (at most %.1f), %d steps during saves took %.1f ms longer per save; lost %.2f %%\n",
    n, bytes / 1048576, all / 1000, quiet, 1000 * stall / n, 1000 * most, beside, longer / n, (1000 * stall + longer) / (all + 1000 * stall) * 100}' spans steps

newest="run/checkpoints/$(cat run/checkpoints/latest)"
TIMEFORMAT="%U %S"
# Verification does not use OpenBLAS, whose threads would spin for a while when they start.
spent="$({ time for _ in 1 2 3 4 5; do OPENBLAS_NUM_THREADS=1 "$program" checkpoint verify "$newest" >/dev/null; done; } 2>&1)"
bytes="$(cat "$newest"/*.h5 | wc -c)"
echo "$spent" | awk -v bytes="$bytes" '{printf "verification: %.2f GB/s per core\n", 5 * bytes / ($1 + $2) / 1e9}'
