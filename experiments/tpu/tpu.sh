#!/usr/bin/env bash
# Runs a geomem experiment on a Cloud TPU slice; see README.md. --dry-run only prints the commands.
#
#   tpu.sh [--dry-run] up gs://BUCKET/FOLDER MODULE [FLAG...]   all steps, repeated when preempted
#   tpu.sh [--dry-run] create | install | start MODULE [FLAG...] | follow | fetch FOLDER | delete
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "error: $1" >&2; exit 2; }
preempted=3 ended=4 # exit statuses: the slice was preempted; the run ended with an error

# check NAME PATTERN: the variable NAME, so that no value is taken for a flag or a command.
check() { [[ ${!1} =~ ^$2$ ]] || fail "$1 must match $2, got '${!1}'."; }

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=ABSENT; shift; fi
for name in TPU_NAME TPU_ZONE; do
  [[ ${!name:-} ]] || fail "$name must be set: TPU_NAME and TPU_ZONE name the slice and its zone."
done
TPU_TYPE=${TPU_TYPE:-v5litepod-8} TPU_VERSION=${TPU_VERSION:-v2-alpha-tpuv5-lite}
TPU_SPOT=${TPU_SPOT:-1} TPU_POLL=${TPU_POLL:-30}
for name in TPU_NAME TPU_ZONE TPU_TYPE TPU_VERSION; do check "$name" '[a-z][a-z0-9-]*'; done
check TPU_SPOT '[01]'
check TPU_POLL '[0-9]+(\.[0-9]+)?'

gcloud() {
  if [[ $dry_run ]]; then printf '%q ' gcloud "$@" && echo; else command gcloud "$@"; fi
}
queue() { gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone "$TPU_ZONE" "${@:2}"; }
slice() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone "$TPU_ZONE"; }
on() { slice ssh "$TPU_NAME" --worker "$1" --command "$2"; }

# ask COMMAND...: what a query prints, or ABSENT if gcloud says so. Any other failure, such as a lost
# connection, tells nothing: the query is repeated, and then the script ends.
ask() {
  local answer errors
  errors=$(mktemp)
  for _ in {1..10}; do
    if answer=$("$@" 2> "$errors") && [[ $answer ]]; then rm "$errors"; echo "$answer"; return; fi
    if grep -q NOT_FOUND "$errors"; then rm "$errors"; echo ABSENT; return; fi
    sleep "$TPU_POLL"
  done
  answer=$(tail -n 1 "$errors")
  rm "$errors"
  fail "gcloud must tell the state of $TPU_NAME, got '$answer'; nothing was deleted."
}

# The state of the queued request, or, once that is ACTIVE, of the slice: READY, PREEMPTED, ...
state() {
  if [[ $dry_run ]]; then echo "$dry_run"; return; fi
  local current
  current=$(ask queue describe --format 'value(state.state)') || exit
  if [[ $current == ACTIVE ]]; then
    current=$(ask slice describe "$TPU_NAME" --format 'value(state)') || exit
    if [[ $current == ABSENT ]]; then current=PREEMPTED; fi # the request is there, the slice is not
  fi
  echo "$current"
}

gone() { [[ $1 =~ ^(SUSPEND|PREEMPTED|TERMINATED) ]]; }

create() {
  local now last=
  while now=$(state) || exit; [[ $now == DELETING ]]; do sleep "$TPU_POLL"; done
  if [[ $now == ABSENT ]]; then
    local spot=()
    if [[ $TPU_SPOT == 1 ]]; then spot=(--spot); fi
    queue create --node-id "$TPU_NAME" --accelerator-type "$TPU_TYPE" \
      --runtime-version "$TPU_VERSION" "${spot[@]}"
    dry_run=${dry_run:+READY}
  fi
  while now=$(state) || exit; [[ $now != READY ]]; do
    if gone "$now"; then exit $preempted; fi
    case $now in
      FAILED) fail "the request for $TPU_NAME failed; 'gcloud compute tpus queued-resources describe' shows the reason." ;;
      ABSENT) fail "$TPU_NAME was deleted while it was being created." ;;
    esac
    if [[ $now != "$last" ]]; then echo "$TPU_NAME: $now"; fi
    last=$now
    sleep "$TPU_POLL"
  done
}

# Installs the committed code and Python 3.12, as the slice's Python may be too old. Results stay.
install() {
  local archive
  archive=$(mktemp)
  git archive --format tar.gz --output "$archive" HEAD
  slice scp "$archive" "$TPU_NAME:geomem.tar.gz" --worker all
  rm "$archive"
  on all 'mkdir -p geomem && rm -rf geomem/geomem geomem/.venv && tar xzf geomem.tar.gz -C geomem && cd geomem &&
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.12 &&
    python3 -m uv pip install --quiet ".[tpu,prepare]"'
}

module() { [[ $1 =~ ^[a-z][a-z_-]*$ ]] || fail "MODULE must be a command of geomem, got '$1'."; }

# Starts the run on every worker, detached from this connection; it writes its exit status to a file.
start() {
  [[ ${1:-} ]] || fail "start needs a MODULE."
  module "$1"
  local job name=${1//-/_}
  shift
  printf -v job 'GEOMEM_DISTRIBUTED=1 GEOMEM_COMMIT=%s .venv/bin/python -m geomem.experiments.%s %s; echo $? > status' \
    "$(git rev-parse --short=12 HEAD)" "$name" "${*@Q}"
  on all "cd geomem && rm -f status && { nohup bash -c ${job@Q} > log 2>&1 < /dev/null & echo \$! > pid; }"
}

# Prints the first worker's log until the run ends or the slice is gone.
follow() {
  local status now
  while true; do
    # shellcheck disable=SC2016 # expanded on the worker
    on 0 'cd geomem && tail -n +1 -F --pid "$(cat pid)" log' || true
    if [[ $dry_run ]]; then return; fi
    # shellcheck disable=SC2016
    status=$(on 0 'cd geomem && if kill -0 "$(cat pid)"; then echo running; else cat status || echo killed; fi' \
      2> /dev/null) || status=unknown # the connection was lost
    if [[ $status == 0 ]]; then return; fi
    for _ in 1 2 3; do # a slice that is being preempted ends its run before its state says so
      now=$(state) || exit
      if gone "$now"; then exit $preempted; fi
      if [[ $now == ABSENT ]]; then fail "$TPU_NAME was deleted while it was in use."; fi
      sleep "$TPU_POLL"
      if [[ $status =~ ^(running|unknown)$ ]]; then continue 2; fi
    done
    case $status in
      143) fail "the run was stopped, but $TPU_NAME is $now: 'start' resumes the run, 'delete' ends the slice." ;;
      *) echo "error: the run ended with status $status." >&2; exit $ended ;;
    esac
  done
}

fetch() {
  [[ ${1:-} =~ ^(gs://)?[A-Za-z0-9._/-]+$ ]] || fail "fetch needs a FOLDER, got '${1:-}'."
  mkdir -p runs
  if [[ $1 == gs://* ]]; then
    gcloud storage cp --recursive "$1" runs
  else
    slice scp --recurse "$TPU_NAME:geomem/$1" runs --worker 0
  fi
}

delete() { queue delete --force --quiet; }

# Deletes the slice only when it is preempted or the run has ended.
up() {
  [[ ${1:-} =~ ^gs://[A-Za-z0-9._/-]+$ && ${2:-} ]] || fail "up needs gs://BUCKET/FOLDER, which outlives the slice, and a MODULE."
  module "$2"
  local out=$1 now status me=("experiments/tpu/tpu.sh" ${dry_run:+--dry-run})
  shift
  now=$(state) || exit
  [[ $now == ABSENT ]] || fail "up creates $TPU_NAME, but it exists; follow or delete it."
  while true; do
    status=0
    "${me[@]}" create || status=$?
    if [[ $status == 0 ]]; then
      { "${me[@]}" install && "${me[@]}" start "$@" --out "$out" && "${me[@]}" follow; } || status=$?
      if [[ ! $status =~ ^(0|$preempted|$ended)$ ]]; then # a step fails if the slice goes during it
        now=$(state) || exit
        if gone "$now"; then status=$preempted; fi
      fi
    fi
    [[ $status =~ ^(0|$preempted|$ended)$ ]] || fail "a step failed; $TPU_NAME was not deleted and may still cost money."
    "${me[@]}" delete
    if [[ $status != "$preempted" ]]; then break; fi
    echo "$TPU_NAME: preempted; a new slice continues from the last checkpoint"
  done
  "${me[@]}" fetch "$out"
  exit "$status"
}

case ${1:-} in
  create | install | start | follow | fetch | delete | up) "$@" ;;
  *) fail "command must be up, create, install, start, follow, fetch or delete, got '${1:-}'." ;;
esac
