# The body of every batch job of a training run: starts the ranks, restarts them after a crash, and requeues the job
# when the run was saved and stopped. The job scripts in this folder source it; `transmamba submit` copies it into those
# it writes. It reads
#   program=(...)        the command that starts the program, in a container if there is one
#   arguments=(...)      train CONFIG ...
#   run_dir              the run directory
#   job_file             the path of this job's script, for submitting it again; empty: unknown
#   job_name             the name that all jobs of this run directory share, and no others; empty: none
#   SITE_*               cluster/site.env; SITE_LAUNCHER=program if the program starts its ranks itself
# and ends with the exit code of the run (README.md). A run that was saved and stopped (85) is requeued:
#   SITE_REQUEUE=auto    by SLURM if its RequeueExit lists 85, else by this script (scontrol requeue)
#   SITE_REQUEUE=self    by this script
#   SITE_REQUEUE=never   not at all: the next job of an array or a chain resumes the run
# shellcheck shell=bash disable=SC2154
set -uo pipefail

say() { printf '%s job %s attempt %s: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$*"; }

# SLURM signals the ranks of srun directly. With other launchers this script gets the signal before the time limit (USR1),
# and TERM too if SLURM signals only the processes it started. Both are forwarded as USR1, which mpirun forwards to all
# ranks; on TERM mpirun would kill them before they have saved.
signalled=""
ranks_pid=""
signal_ranks() { if [ -n "$ranks_pid" ] && [ "$SITE_LAUNCHER" != srun ]; then kill -USR1 "$ranks_pid" 2>/dev/null; fi; }
on_signal() {
  signalled=$1
  say "SIG$1"
  signal_ranks
}
trap 'on_signal TERM' TERM
trap 'on_signal USR1' USR1

# With several interfaces the automatic choice of MPI and NCCL is often wrong.
use_interface() {
  [ -n "${SITE_INTERFACE:-}" ] || return 0
  export NCCL_SOCKET_IFNAME="$SITE_INTERFACE"
  export OMPI_MCA_btl_tcp_if_include="$SITE_INTERFACE" OMPI_MCA_oob_tcp_if_include="$SITE_INTERFACE"
}

# The wrapper that srun starts for each rank. It writes an intended exit code (2, 85, 93), which all ranks share, to a file
# for the script, and forwards signals to the rank: with proctrack/cgroup SLURM signals only the process it started.
# shellcheck disable=SC2016
one_rank='signalled="" rank=""
tell() { signalled=$1; [ -z "$rank" ] || kill -"$1" "$rank" 2>/dev/null; }
trap "tell TERM" TERM; trap "tell USR1" USR1; trap "tell INT" INT
"$@" &
rank=$!
[ -z "$signalled" ] || tell "$signalled"
while :; do wait "$rank"; code=$?; kill -0 "$rank" 2>/dev/null || break; done
case $code in
  2 | 85 | 93) if [ "$SLURM_PROCID" != 0 ] || echo "$code" >"$TMAMBA_EXIT_CODE"; then exit 0; fi ;;
esac
exit "$code"'

start_command() {
  case $SITE_LAUNCHER in
    srun)
      # When a rank crashes the others are killed at once; when all exit on purpose the last must not be killed.
      export TMAMBA_EXIT_CODE="$run_dir/exit-code-$SLURM_JOB_ID"
      start=(srun --mpi="${SITE_MPI:-pmix}" --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}"
        bash -c "$one_rank" transmamba)
      ;;
    mpirun)
      start=(mpirun --map-by "ppr:${SLURM_NTASKS_PER_NODE:-1}:node" --bind-to none)
      # mpirun must ignore TERM: the ranks save, and mpirun ends after them.
      if env --block-signal=TERM true 2>/dev/null; then
        start=(env --block-signal=TERM "${start[@]}" --mca orte_launch_agent "env --block-signal=TERM orted")
      fi
      ;;
    program)
      start=()
      # srun does not inherit the job's cores per task.
      export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
      ;;
    *) say "SITE_LAUNCHER=$SITE_LAUNCHER: must be srun or mpirun"; exit 2 ;;
  esac
}

# Starts the ranks and waits until they have ended, also when signals interrupt the wait.
run_ranks() {
  rm -f "${TMAMBA_EXIT_CODE:-}"
  "${start[@]}" "${program[@]}" "${arguments[@]}" &
  ranks_pid=$!
  if [ -n "$signalled" ]; then signal_ranks; fi
  while :; do
    wait "$ranks_pid"
    code=$?
    kill -0 "$ranks_pid" 2>/dev/null || break
  done
  # An interrupted wait returned the signal's number; a second wait returns the exit code of the ranks.
  if [ "$code" -gt 128 ] && [ -n "$signalled" ]; then wait "$ranks_pid"; code=$?; fi
  ranks_pid=""
  if [ "$code" -eq 0 ] && [ -s "${TMAMBA_EXIT_CODE:-}" ]; then
    code=$(cat "$TMAMBA_EXIT_CODE")
    rm -f "$TMAMBA_EXIT_CODE"
  fi
}

# Whether this attempt is still the one that SLURM considers running; on a lost node it is not.
current() {
  local job
  job=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null) || return 1
  [[ $job == *" JobState=RUNNING "* && $job == *" Restarts=${SLURM_RESTART_COUNT:-0} "* ]]
}

# Cancels the jobs that wait to resume this run. It uses job_name, not the name SLURM knows for this job, which jobs of
# other runs may share.
cancel_successors() {
  [ "$SITE_REQUEUE" = never ] || return 0
  if [ -n "${job_name:-}" ]; then
    scancel --user="$(id -un)" --name="$job_name" --state=PENDING 2>/dev/null || true
  elif [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
    scancel --state=PENDING "$SLURM_ARRAY_JOB_ID" 2>/dev/null || true
  fi
}

# Whether three attempts made no progress. An attempt whose run directory another job has taken over exits with the same
# code, and must not cancel the other's jobs.
no_progress() { tail -n 1 "$run_dir/events.jsonl" 2>/dev/null | grep -q '"event":"no_progress"'; }

# Whether a user stopped the run with the file STOP; after any other stop the job is requeued.
stopped_by_user() { tail -n 1 "$run_dir/events.jsonl" 2>/dev/null | grep -q '"signal":"STOP"'; }

# shellcheck disable=SC2016
# Prints the nodes of "$@" on which SLURM starts no process within a few seconds, one per line. SLURM itself notices after
# SlurmdTimeout.
silent_nodes() {
  local answers
  answers=$(timeout -k 1 $((${SITE_ANSWER_SECONDS:-4} + $# / 100)) srun --mpi=none --overlap --nodelist="$(IFS=,; echo "$*")" --nodes=$# \
    --ntasks=$# --ntasks-per-node=1 --cpus-per-task=1 bash -c 'echo "$SLURMD_NODENAME"' 2>/dev/null)
  printf '%s\n' "$@" | grep -vxF "${answers:-none}"
}

# Prints the lost nodes of the job, separated by commas. It probes twice, the second time only the silent nodes, because
# SLURM forwards messages through nodes and a silent one hides others.
lost_nodes() {
  local nodes silent
  mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null)
  [ ${#nodes[@]} -gt 1 ] || return 0
  mapfile -t silent < <(silent_nodes "${nodes[@]}")
  # If no node answers, not even this one, SLURM itself does not answer.
  [ ${#silent[@]} -gt 0 ] && [ ${#silent[@]} -lt ${#nodes[@]} ] || return 0
  silent_nodes "${silent[@]}" | paste -s -d ,
}

# Submits the job again without its lost nodes and exits. SLURM would requeue it only after noticing the loss itself.
replace_job() {
  local lost=$1 excluded again job name
  [ "$SITE_REQUEUE" != never ] && [ -r "${job_file:-}" ] || return 0
  job=$(scontrol --oneliner show job "$SLURM_JOB_ID" 2>/dev/null)
  excluded=$(sed -n 's/.* ExcNodeList=\([^ ]*\) .*/\1/p' <<<"$job" | grep -v '^(null)$')
  # This job's SLURM_ variables would become options of the new one.
  again=(env)
  for name in $(compgen -e SLURM_); do [ "$name" = SLURM_CONF ] || again+=(-u "$name"); done
  if job=$("${again[@]}" sbatch --parsable --exclude="$lost${excluded:+,$excluded}" "$job_file" 2>&1); then
    say "lost $lost: job ${job%%;*} resumes without"
    exit "$code"
  fi
  say "lost $lost; no job could be submitted without: $job"
}

requeue_exits() { scontrol show config 2>/dev/null | sed -n 's/^RequeueExit *= *//p' | tr ',' '\n'; }

# The run was saved and stopped: requeues the job if needed and exits with the matching code.
requeue_and_exit() {
  if stopped_by_user; then
    say "stopped by the file STOP: not requeued"
    cancel_successors
    exit 0
  fi
  if [ "$SITE_REQUEUE" = never ]; then
    say "saved; the next job resumes"
    exit 0
  fi
  # After TERM SLURM decides whether the job is requeued: after preemption and requeue, not after scancel.
  if [ "$signalled" != TERM ] && { [ "$SITE_REQUEUE" = self ] || ! requeue_exits | grep -qx 85; }; then
    say "saved; requeued"
    # SLURM's TERM may reach only this script, which handles it when the command it waits for has ended.
    if scontrol requeue "$SLURM_JOB_ID"; then
      for _ in $(seq 600); do [ "$signalled" != TERM ] || break; sleep 1; done
    fi
  fi
  exit 85
}

set +u  # functions that modules define use unset variables
eval "${SITE_SETUP:-}"
set -u
SITE_LAUNCHER=${SITE_LAUNCHER:-srun}
SITE_REQUEUE=${SITE_REQUEUE:-auto}
use_interface
start_command
say "${SLURM_JOB_NUM_NODES} nodes ($SLURM_JOB_NODELIST), $SLURM_NTASKS ranks, by $SITE_LAUNCHER"
restarts=0
while :; do
  # The signal came before the ranks started, or killed them: no time is left to start them.
  if [ -n "$signalled" ]; then requeue_and_exit; fi
  run_ranks
  case $code in
    0) cancel_successors; exit 0 ;;
    2 | 93)
      say "exit code $code: not restarted"
      if no_progress; then cancel_successors; fi
      exit "$code"
      ;;
    85) requeue_and_exit ;;
  esac
  # A crash. After three attempts without progress the run itself exits with 93.
  if [ "$signalled" = TERM ]; then exit "$code"; fi
  if ! current; then say "exit code $code; SLURM no longer runs this attempt of the job"; exit "$code"; fi
  restarts=$((restarts + 1))
  if [ "$restarts" -gt "${SITE_RESTARTS:-20}" ]; then say "exit code $code, after ${SITE_RESTARTS:-20} restarts"; exit "$code"; fi
  lost=$(lost_nodes)
  if [ "$signalled" = TERM ]; then exit "$code"; fi
  if [ -n "$lost" ]; then replace_job "$lost"; fi
  say "exit code $code: restarting the ranks ($restarts)"
  sleep 1
done
