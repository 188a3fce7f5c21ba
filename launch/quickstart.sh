#!/usr/bin/env bash
# From a fresh Debian 12 machine with two cores to a trained TransMamba: installs packages, builds, takes real English
# (Debian's dict-gcide, 40 MB), prepares it, trains with two MPI ranks, and shows the result. Run it again and it resumes
# where it stopped. About 15 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/packages.sh

run=runs/quickstart
say() { printf '\n== %s\n' "$*"; }

say "packages"
install_packages "${build_packages[@]}" dpkg gzip xz-utils
echo "all there"

say "build (build/cpu)"
cmake --preset cpu >/dev/null
cmake --build --preset cpu --target transmamba | tail -1
transmamba=$PWD/build/cpu/launch/transmamba

say "text: the Collaborative International Dictionary of English (dict-gcide)"
mkdir -p $run
if [ ! -s $run/gcide.txt ]; then
  (cd $run && apt-get download dict-gcide >/dev/null && dpkg -x dict-gcide_*.deb deb &&
    zcat <deb/usr/share/dictd/gcide.dict.dz >gcide.txt.part && mv gcide.txt.part gcide.txt && rm -rf deb dict-gcide_*.deb)
fi
ls -l $run/gcide.txt | awk '{printf "%s, %.1f MB\n", $NF, $5 / 1e6}'

say "tokenizer and token files"
if [ ! -s $run/tokenizer.model ]; then
  echo "training a SentencePiece tokenizer of 2048 tokens"
  "$transmamba" tokenizer train $run/gcide.txt --vocab 2048 --max-bytes 8388608 --output $run/tokenizer.model
fi
"$transmamba" prepare $run/gcide.txt --output $run/data --tokenizer $run/tokenizer.model

if [ ! -s $run/baselines ]; then
  echo "sizes under gzip -9 and xz -6, to compare with"
  bytes=$(stat -c %s $run/gcide.txt)
  gz=$(gzip -9 -c $run/gcide.txt | wc -c)
  xz=$(xz -6 -T2 -c $run/gcide.txt | wc -c)
  awk -v b="$bytes" -v g="$gz" -v x="$xz" 'BEGIN { printf "gzip -9=%.3f\nxz -6=%.3f\n", 8 * g / b, 8 * x / b }' >$run/baselines.part
  mv $run/baselines.part $run/baselines
fi

say "training with mpirun -n 2 (Ctrl-C saves and stops; run again to resume)"
compare=()
while read -r line; do compare+=(--compare "$line"); done <$run/baselines
# mpirun kills its ranks when it gets Ctrl-C. In a session of its own it does not get it, and USR1 saves.
setsid mpirun -n 2 "$transmamba" train configs/quickstart.toml "${compare[@]}" &
trap 'kill -USR1 $! 2>/dev/null' INT TERM
code=0
wait $! || code=$?
while [ $code -gt 128 ]; do code=0; wait $! || code=$?; done  # a signal to this script ends a wait, not mpirun
trap - INT TERM
if [ $code -eq 85 ]; then
  echo "stopped on a signal and saved; run ./launch/quickstart.sh again to resume"
fi
[ $code -eq 0 ] || exit $code

cat <<EOF

What to run next:
  build/cpu/launch/transmamba generate $run --prompt "Heart"          text from the model
  build/cpu/launch/transmamba eval $run --schedule '[0]'              the same weights as a pure Mamba
  build/cpu/launch/transmamba checkpoint ls $run                      its checkpoints
  build/cpu/launch/transmamba bench step                              how fast this machine trains
  ./tests/run.sh                                                      every test
EOF
