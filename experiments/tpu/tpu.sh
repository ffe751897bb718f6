#!/usr/bin/env bash
# Runs a geomem experiment on a Cloud TPU slice; see README.md. --dry-run only prints the commands.
#
#   tpu.sh [--dry-run] up gs://BUCKET/FOLDER MODULE [FLAG...]   all steps, repeated when preempted
#   tpu.sh [--dry-run] create | install | start MODULE [FLAG...] | follow | fetch FOLDER | delete
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "error: $1" >&2; exit 2; }
preempted=3 # an exit status

dry_run=
if [[ ${1:-} == --dry-run ]]; then dry_run=ABSENT; shift; fi
for name in TPU_NAME TPU_ZONE; do
  [[ ${!name:-} ]] || fail "$name must be set: TPU_NAME and TPU_ZONE name the slice and its zone."
done
TPU_TYPE=${TPU_TYPE:-v5litepod-8} TPU_VERSION=${TPU_VERSION:-v2-alpha-tpuv5-lite}
TPU_SPOT=${TPU_SPOT:-1} TPU_POLL=${TPU_POLL:-30}

gcloud() {
  if [[ $dry_run ]]; then printf '%q ' gcloud "$@" && echo; else command gcloud "$@"; fi
}
queue() { gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone "$TPU_ZONE" "${@:2}"; }
slice() { gcloud compute tpus tpu-vm "$1" "${@:2}" --zone "$TPU_ZONE"; }
on() { slice ssh "$TPU_NAME" --worker "$1" --command "$2"; }

# The state of the queued request, or, once that is ACTIVE, of the slice: READY, PREEMPTED, ...
state() {
  if [[ $dry_run ]]; then echo "$dry_run"; return; fi
  local current
  current=$(queue describe --format 'value(state.state)' 2>/dev/null) || current=ABSENT
  if [[ $current == ACTIVE ]]; then current=$(slice describe "$TPU_NAME" --format 'value(state)'); fi
  echo "$current"
}

create() {
  local now last=
  if [[ $(state) == ABSENT ]]; then
    local spot=()
    if [[ $TPU_SPOT == 1 ]]; then spot=(--spot); fi
    queue create --node-id "$TPU_NAME" --accelerator-type "$TPU_TYPE" \
      --runtime-version "$TPU_VERSION" "${spot[@]}"
    dry_run=${dry_run:+READY}
  fi
  while now=$(state); [[ $now != READY ]]; do
    case $now in
      FAILED) fail "the request for $TPU_NAME failed; 'gcloud compute tpus queued-resources describe' shows the reason." ;;
      SUSPEND* | PREEMPTED | TERMINATED | ABSENT) exit $preempted ;;
    esac
    if [[ $now != "$last" ]]; then echo "$TPU_NAME: $now"; fi
    last=$now
    sleep "$TPU_POLL"
  done
}

# Installs the committed code and Python 3.12, as the slice's Python may be too old.
install() {
  local archive
  archive=$(mktemp)
  git archive --format tar.gz --output "$archive" HEAD
  slice scp "$archive" "$TPU_NAME:geomem.tar.gz" --worker all
  rm "$archive"
  on all 'rm -rf geomem && mkdir geomem && tar xzf geomem.tar.gz -C geomem && cd geomem &&
    python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --python 3.12 &&
    python3 -m uv pip install --quiet ".[tpu,prepare]"'
}

# Starts the run on every worker, detached from this connection; it writes its exit status to a file.
start() {
  local job
  printf -v job 'GEOMEM_DISTRIBUTED=1 GEOMEM_COMMIT=%s .venv/bin/python -m geomem.experiments.%s; echo $? > status' \
    "$(git describe --always --abbrev=12)" "${*@Q}"
  on all "cd geomem && rm -f status && { nohup bash -c ${job@Q} > log 2>&1 < /dev/null & echo \$! > pid; }"
}

# Prints the first worker's log until the run ends or the slice is gone.
follow() {
  local status
  while true; do
    # shellcheck disable=SC2016 # expanded on the worker
    on 0 'cd geomem && tail -n +1 -F --pid "$(cat pid)" log' || true
    if [[ $dry_run ]]; then return; fi
    status=$(on 0 'cat geomem/status || echo running' 2>/dev/null) || status=running
    if [[ $status == 0 ]]; then return; fi
    if [[ $status != running ]]; then fail "the run ended with status $status."; fi
    if [[ $(state) != READY ]]; then exit $preempted; fi
    sleep "$TPU_POLL" # only the connection was lost
  done
}

fetch() {
  mkdir -p runs
  if [[ $1 == gs://* ]]; then
    gcloud storage cp --recursive "$1" runs
  else
    slice scp --recurse "$TPU_NAME:geomem/$1" runs --worker 0
  fi
}

delete() { queue delete --force --quiet; }

up() {
  [[ ${1:-} == gs://* && ${2:-} ]] || fail "up needs gs://BUCKET/FOLDER, which outlives the slice, and a MODULE."
  [[ $(state) == ABSENT ]] || fail "up creates $TPU_NAME, but it exists; follow or delete it."
  local out=$1 status me=("experiments/tpu/tpu.sh" ${dry_run:+--dry-run})
  shift
  while true; do
    status=0
    # A step also fails if the slice is preempted during it.
    { "${me[@]}" create && "${me[@]}" install && "${me[@]}" start "$@" --out "$out" && "${me[@]}" follow; } || status=$?
    if [[ $status == 1 && $(state) =~ ^(SUSPEND|PREEMPTED|TERMINATED) ]]; then status=$preempted; fi
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
