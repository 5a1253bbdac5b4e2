#!/usr/bin/env bash
# Prints the first session of the README as a terminal shows it: both streams of each command go to one file.
#
#   cargo build --release && crates/server/docs/transcript.sh target/release/nodetracker
#
# The port, times and ages are replaced by fixed values, so that a test can compare the session with the README.
set -euo pipefail
binary=${1:-nodetracker}
folder=$(mktemp -d)
session=$folder/session
trap 'kill -KILL "$pid" 2>/dev/null || true; rm -r "$folder"' EXIT

nodetracker() { "$binary" "$@"; }

# Shows the command, and runs it. A refused call is part of the session.
try() {
  printf '$ %s\n' "$1" >>"$session"
  eval "$1" >>"$session" 2>&1 || true
}

printf '$ nodetracker serve &\n' >>"$session"
"$binary" serve --listen-addr 127.0.0.1:0 >>"$session" 2>&1 &
pid=$!
until grep -q '^listening on ' "$session"; do kill -0 "$pid"; sleep 0.05; done
NODETRACKER_ADDR=$(sed -n 's/^listening on //p' "$session")
export NODETRACKER_ADDR

try 'node=550e8400-e29b-41d4-a716-446655440000'
try 'nodetracker add $node proxy-1 10.0.0.1:3080 --cluster main'
# The order of look-ups is by time, to the millisecond.
sleep 0.01
try 'nodetracker add $node proxy-2 10.0.0.2:3080 --cluster main'
try 'nodetracker get $node'
try 'nodetracker rm $node'
try 'nodetracker get $node'
try 'nodetracker add $node proxy-1 10.0.0.1'
printf '$ kill -INT %%1\n' >>"$session"
kill -INT "$pid"
wait "$pid"

sed -E -e "s/127\.0\.0\.1:${NODETRACKER_ADDR##*:}\b/127.0.0.1:3029/g" \
  -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z/2026-11-24T21:15:13.203542Z/' \
  -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z \([^)]* ago\)/2026-11-24T21:15:13.778Z (1s ago)/' \
  -e 's/connections=[0-9]+/connections=0/' "$session"
