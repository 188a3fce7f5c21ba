# What a batch job of a training run does, on every site: starts the ranks, starts them again after a crash, and hands
# the run on to the next start of the job when it was saved and stopped. Sourced by the job scripts here; `transmamba
# submit` puts it into those it writes. It reads
#   program=(...)        the program, by itself; in a container, how it is started there
#   arguments=(...)      train CONFIG ...
#   run_dir              the folder of the run
#   job_file             the script of the job itself, with all its options; empty: there is none to submit again
#   job_name             the name of all jobs of this run folder, and of no others; empty: there is no such name
#   SITE_*               cluster/site.env; SITE_LAUNCHER=program where the program starts its ranks itself
# and ends with the exit code of the run (README.md). A run that was saved and stopped (85) is requeued:
#   SITE_REQUEUE=auto    by SLURM where its RequeueExit has 85, else by this script (scontrol requeue)
#   SITE_REQUEUE=self    by this script
#   SITE_REQUEUE=never   not at all: the next job of an array or a chain goes on
# shellcheck shell=bash disable=SC2154
set -uo pipefail

say() { printf '%s job %s start %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$*"; }

# SLURM tells the ranks of srun itself. For others the notice before the time limit (USR1) comes here, and where SLURM
# signals only what it started itself TERM does too. Both are passed on as USR1, which mpirun hands to all ranks; on TERM
# it would leave them no time to save.
told=""
ranks_pid=""
tell_ranks() { if [ -n "$ranks_pid" ] && [ "$SITE_LAUNCHER" != srun ]; then kill -USR1 "$ranks_pid" 2>/dev/null; fi; }
on_signal() {
  told=$1
  say "SIG$1"
  tell_ranks
}
trap 'on_signal TERM' TERM
trap 'on_signal USR1' USR1

# MPI's and NCCL's own choice of interface is often wrong where there is more than one.
use_interface() {
  [ -n "${SITE_INTERFACE:-}" ] || return 0
  export NCCL_SOCKET_IFNAME="$SITE_INTERFACE"
  export OMPI_MCA_btl_tcp_if_include="$SITE_INTERFACE" OMPI_MCA_oob_tcp_if_include="$SITE_INTERFACE"
}

# What srun starts for each rank: an exit code of purpose (2, 85, 93), the same on all ranks, goes to the script by a file.
# Signals go on to the rank: with proctrack/cgroup SLURM signals only what it started itself.
# shellcheck disable=SC2016
one_rank='told="" rank=""
tell() { told=$1; [ -z "$rank" ] || kill -"$1" "$rank" 2>/dev/null; }
trap "tell TERM" TERM; trap "tell USR1" USR1; trap "tell INT" INT
"$@" &
rank=$!
[ -z "$told" ] || tell "$told"
while :; do wait "$rank"; code=$?; kill -0 "$rank" 2>/dev/null || break; done
case $code in
  2 | 85 | 93) if [ "$SLURM_PROCID" != 0 ] || echo "$code" >"$TMAMBA_EXIT_CODE"; then exit 0; fi ;;
esac
exit "$code"'

start_command() {
  case $SITE_LAUNCHER in
    srun)
      # When a rank dies the others must go, at once; when all leave on purpose none may be killed for being last.
      export TMAMBA_EXIT_CODE="$run_dir/exit-code-$SLURM_JOB_ID"
      start=(srun --mpi="${SITE_MPI:-pmix}" --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
        bash -c "$one_rank" transmamba)
      ;;
    mpirun)
      start=(mpirun --map-by "ppr:${SLURM_NTASKS_PER_NODE:-1}:node" --bind-to none)
      # TERM is for the ranks: they save, and mpirun ends after them.
      if env --block-signal=TERM true 2>/dev/null; then
        start=(env --block-signal=TERM "${start[@]}" --mca orte_launch_agent "env --block-signal=TERM orted")
      fi
      ;;
    program)
      start=()
      # Its sruns do not take the job's cores per task over by themselves.
      export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
      ;;
    *) say "SITE_LAUNCHER=$SITE_LAUNCHER: neither srun nor mpirun"; exit 2 ;;
  esac
}

# Starts the ranks and waits for them, however often a signal interrupts the wait.
run_ranks() {
  rm -f "${TMAMBA_EXIT_CODE:-}"
  "${start[@]}" "${program[@]}" "${arguments[@]}" &
  ranks_pid=$!
  if [ -n "$told" ]; then tell_ranks; fi
  while :; do
    wait "$ranks_pid"
    code=$?
    kill -0 "$ranks_pid" 2>/dev/null || break
  done
  # The wait that a signal cut short gave the signal's number; the shell still has the right one.
  if [ "$code" -gt 128 ] && [ -n "$told" ]; then wait "$ranks_pid"; code=$?; fi
  ranks_pid=""
  if [ "$code" -eq 0 ] && [ -s "${TMAMBA_EXIT_CODE:-}" ]; then
    code=$(cat "$TMAMBA_EXIT_CODE")
    rm -f "$TMAMBA_EXIT_CODE"
  fi
}

# Whether SLURM still takes this start of the job for the running one: on a node that it has lost it is not.
current() {
  local job
  job=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || return 1
  [[ $job == *" JobState=RUNNING "* && $job == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]
}

# Jobs that wait to go on with this run: there is nothing for them to do. Never by the name that SLURM has for this job,
# which other runs' jobs may have too.
cancel_successors() {
  [ "$SITE_REQUEUE" = never ] || return 0
  if [ -n "${job_name:-}" ]; then
    scancel --user="$(id -un)" --name="$job_name" --state=PENDING 2>/dev/null || true
  elif [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" 2>/dev/null || true
  fi
}

# Whether the run itself is at its end: three starts have come to nothing. A start that another has taken the folder from
# leaves with the same code, and must leave the other's jobs alone.
no_progress() { tail -n 1 "$run_dir/events.jsonl" 2>/dev/null | grep -q '"event":"no_progress"'; }

# A user's STOP ends the run; anything else that saved and stopped it asks for another start.
stopped_by_user() { tail -n 1 "$run_dir/events.jsonl" 2>/dev/null | grep -q '"signal":"STOP"'; }

# shellcheck disable=SC2016
# Nodes of "$@" on which SLURM starts nothing within a few seconds, one a line. SLURM itself takes SlurmdTimeout to see it.
silent_nodes() {
  local answers
  answers=$(timeout -k 1 $((${SITE_ANSWER_SECONDS:-4} + $# / 100)) srun --mpi=none --overlap --nodelist="$(IFS=,; echo "$*")" --nodes=$# \
    --ntasks=$# --ntasks-per-node=1 --cpus-per-task=1 bash -c 'echo "$SLURMD_NODENAME"' 2>/dev/null)
  printf '%s\n' "$@" | grep -vxF "${answers:-none}"
}

# After a crash: those of the job's nodes that are gone, with a comma between them. Looked for twice, the second time
# without the others: through a silent node SLURM does not reach those behind it.
lost_nodes() {
  local nodes silent
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null)
  [ ${#nodes[@]} -gt 1 ] || return 0
  mapfile -t silent < <(silent_nodes "${nodes[@]}")
  # Not even this one: it is SLURM that does not answer.
  [ ${#silent[@]} -gt 0 ] && [ ${#silent[@]} -lt ${#nodes[@]} ] || return 0
  silent_nodes "${silent[@]}" | paste -s -d ,
}

# Hands in the job again, without its lost nodes, and leaves: SLURM would requeue it when it has seen the loss itself.
replace_job() {
  local lost=$1 excluded again job name
  [ "$SITE_REQUEUE" != never ] && [ -r "${job_file:-}" ] || return 0
  job=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null)
  excluded=$(sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p' <<<"$job" | grep -v '^(null)$')
  # What this job is does not say what the other will be.
  again=(env)
  for name in $(compgen -e SLURM_); do [ "$name" = SLURM_CONF ] || again+=(-u "$name"); done
  if job=$("${again[@]}" sbatch --parsable --exclude="$lost${excluded:+,$excluded}" "$job_file" 2>&1); then
    say "lost $lost: job ${job%%;*} goes on without"
    exit "$code"
  fi
  say "lost $lost; no other job can go on without: $job"
}

requeue_exits() { scontrol show config 2>/dev/null | sed -n 's/^RequeueExit *= *//p' | tr ',' '\n'; }

# The run was saved and stopped. Leaves with the exit code that fits.
hand_on() {
  if stopped_by_user; then
    say "stopped by the switch file STOP: not requeued"
    cancel_successors
    exit 0
  fi
  if [ "$SITE_REQUEUE" = never ]; then
    say "saved; the next job goes on"
    exit 0
  fi
  # After TERM SLURM itself knows whether the job comes back: it does after preemption and requeue, not after scancel.
  if [ "$told" != TERM ] && { [ "$SITE_REQUEUE" = self ] || ! requeue_exits | grep -qx 85; }; then
    say "saved; requeued"
    # SLURM's TERM may reach this script alone, which hears of it when what it waits for has ended.
    if scontrol requeue "$SLURM_JOB_ID"; then
      for _ in $(seq 600); do [ "$told" != TERM ] || break; sleep 1; done
    fi
  fi
  exit 85
}

set +u  # what modules define does not hold to it
eval "${SITE_SETUP:-}"
set -u
SITE_LAUNCHER=${SITE_LAUNCHER:-srun}
SITE_REQUEUE=${SITE_REQUEUE:-auto}
use_interface
start_command
say "${SLURM_JOB_NUM_NODES} nodes ($SLURM_JOB_NODELIST), $SLURM_NTASKS ranks, by $SITE_LAUNCHER"
restarts=0
while :; do
  # The notice came before the ranks, or they died of it: there is no time left to start them.
  if [ -n "$told" ]; then hand_on; fi
  run_ranks
  case $code in
    0) cancel_successors; exit 0 ;;
    2 | 93)
      say "exit code $code: not started again"
      if no_progress; then cancel_successors; fi
      exit "$code"
      ;;
    85) hand_on ;;
  esac
  # A crash. What the run has made no progress in for three starts it refuses itself, by 93.
  if [ "$told" = TERM ]; then exit "$code"; fi
  if ! current; then say "exit code $code; SLURM no longer runs this start of the job"; exit "$code"; fi
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "${SITE_RESTARTS:-20}" ]; then say "exit code $code, after ${SITE_RESTARTS:-20} restarts"; exit "$code"; fi
  lost=$(lost_nodes)
  if [ "$told" = TERM ]; then exit "$code"; fi
  if [ -n "$lost" ]; then replace_job "$lost"; fi
  say "exit code $code: starting the ranks again ($restarts)"
  sleep 1
done
