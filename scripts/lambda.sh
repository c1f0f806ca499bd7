#!/usr/bin/env bash
# Runs the course on a rented GPU machine (Lambda, or any Linux with ssh, rsync and tmux).
set -euo pipefail

FOLDER=rlhf-course # in the machine's home directory
SESSION=rlhf
LOG=runs/lambda.log
RESULTS=runs/from_lambda # here; apart from what this machine has measured itself
DEFAULT=(.venv/bin/python -m rlhf_helpers course --scale tiny)

usage() {
  cat <<EOF
Usage: scripts/lambda.sh COMMAND HOST [...]

  setup HOST           copy this repository there, make .venv, install (keeps the machine's torch
                       where that is 2.6 or newer, for Python 3.11 to 3.13)
  run HOST [COMMAND]   start COMMAND there under tmux, with a log in $LOG
                       (default: ${DEFAULT[*]})
  status HOST          the end of the log, and whether the run is still going on
  attach HOST          watch it live (leave with Ctrl-b d; the run goes on)
  fetch HOST           copy its runs/ into $RESULTS/ here

HOST is what you give to ssh, for example ubuntu@192.0.2.7.

The machine is billed from its start until you TERMINATE it in the provider's dashboard, whether it
computes or not. Fetch your results first: terminating deletes its disk.
EOF
}

fail() {
  echo "error: $1" >&2
  exit 2
}

setup() {
  rsync --archive --compress --delete --exclude='/.*' --exclude=/runs --exclude=__pycache__ \
    ./ "$1:$FOLDER/"
  ssh "$1" "cd $FOLDER && bash -s" <<'REMOTE'
set -euo pipefail
for python in python3 python3.13 python3.12 python3.11 none; do
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
    2>/dev/null && break
done
if [ "$python" = none ]; then
  echo "error: no Python 3.11 to 3.13 there; try: sudo apt-get install python3.11-venv" >&2
  exit 1
fi
if torch=$("$python" -c 'import torch; print(torch.__version__)' 2>/dev/null) &&
  printf '2.6\n%s\n' "$torch" | sort --version-sort --check=quiet; then
  echo "keeping the machine's torch $torch"
  "$python" -m venv --system-site-packages .venv
  echo "torch==$torch" >.venv/keep.txt
else
  "$python" -m venv .venv
  : >.venv/keep.txt
fi
.venv/bin/python -m pip install --constraint .venv/keep.txt --editable '.[course,cloud]'
.venv/bin/python -c 'import torch; print(torch.__version__, "GPUs:", torch.cuda.device_count())'
REMOTE
}

run() {
  local host=$1
  shift
  [ $# -gt 0 ] || set -- "${DEFAULT[@]}"
  # The command travels as a file, so that tmux need not quote it a second time.
  printf 'cd "$HOME/%s"\n{ %s; echo "exit status $?"; } 2>&1 | tee -a %s\n' \
    "$FOLDER" "$(printf '%q ' "$@")" "$LOG" |
    ssh "$host" "cd $FOLDER && mkdir -p runs &&
      if tmux has-session -t $SESSION 2>/dev/null; then
        echo 'error: a run is going on; see scripts/lambda.sh status $host' >&2; exit 1
      fi
      cat >runs/lambda_run.sh && tmux new-session -d -s $SESSION 'bash runs/lambda_run.sh'"
  echo "started under tmux; look at it with: scripts/lambda.sh status $host"
}

status() {
  ssh "$1" "tail -n 20 $FOLDER/$LOG
    if tmux has-session -t $SESSION 2>/dev/null; then echo 'still running'; else echo 'ended'; fi"
}

attach() {
  ssh -t "$1" "tmux attach -t $SESSION"
}

fetch() {
  mkdir -p "$RESULTS"
  rsync --archive --compress "$1:$FOLDER/runs/" "$RESULTS/"
  echo "the results are in $RESULTS/"
}

remind() {
  echo
  echo "$1 is billed until you terminate it in the provider's dashboard. Logging out is not enough."
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  setup | run | status | attach | fetch)
    [ $# -ge 2 ] || fail "$1 needs a HOST, such as ubuntu@192.0.2.7; see --help"
    [ "$1" = run ] || [ $# -eq 2 ] || fail "$1 takes one HOST and nothing else; see --help"
    host=$2
    trap 'remind "$host"' EXIT # also when something fails: the bill runs on
    "$@"
    ;;
  -h | --help | help) usage ;;
  *) fail "unknown command '${1:-}'; see scripts/lambda.sh --help" ;;
esac
