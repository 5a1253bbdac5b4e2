#!/usr/bin/env bash
# Runs the commands of first-hour.md, and prints them with their output as a terminal shows them.
#
#   cargo build --release && crates/server/docs/first-hour.sh target/release/nodetracker
#
# The trackers listen on free ports. Ports and times are replaced by fixed values, so that a test can compare the
# session with the document. Needs openssl.
set -euo pipefail
command -v openssl >/dev/null || { echo 'openssl is not installed' >&2; exit 2; }
binary=$(realpath "$(command -v "${1:-nodetracker}")")
folder=$(mktemp -d)
session=$folder/session
# Waits for the end of the tracker, which may write to the folder.
trap 'while kill -KILL $pid 2>/dev/null; do sleep 0.05; done; rm -r "$folder"' EXIT
mkdir "$folder/bin" "$folder/first-hour"
ln -s "$binary" "$folder/bin/nodetracker"
PATH=$folder/bin:$PATH
cd "$folder/first-hour"

# The command, but on free ports.
nodetracker() {
  if [ "$1" = serve ]; then
    export NODETRACKER_LISTEN_ADDR=127.0.0.1:0 NODETRACKER_DIAG_ADDR=127.0.0.1:0
    exec nodetracker "$@"
  fi
  command nodetracker "$@"
}

# Shows the commands, and runs them. A refused call is part of the session.
try() {
  printf '$ %s\n' "$1" >>"$session"
  eval "$1" >>"$session" 2>&1 || true
}

# As `try`, without the output.
quietly() {
  printf '$ %s\n' "$1" >>"$session"
  eval "$1" >/dev/null 2>&1
}

# Starts a tracker, and uses its ports.
start_tracker() {
  try start
  pid=$!
  # Otherwise the shell would report the end of the process.
  disown
  grep -q '^listening on ' tracker.log || { cat "$session" >&2; exit 1; }
  NODETRACKER_ADDR=https://$(sed -n 's/^listening on //p' tracker.log)
  NODETRACKER_DIAG_ADDR=$(sed -n 's/.* metrics are on //p' tracker.log)
  export NODETRACKER_ADDR NODETRACKER_DIAG_ADDR
  ports+=("${NODETRACKER_ADDR##*:}")
}
pid=
ports=()

quietly 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=ca -keyout ca.key -out ca.crt'
quietly 'issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $1.key -subj "$2" -addext "$3" -out $1.csr
  openssl x509 -req -in $1.csr -copy_extensions copy -CA ca.crt -CAkey ca.key -CAcreateserial -days 90 -out $1.crt
}'
quietly 'issue tracker /CN=tracker subjectAltName=DNS:localhost,IP:127.0.0.1'
quietly 'issue proxy-1 /O=Proxy/CN=proxy-1 extendedKeyUsage=clientAuth'
quietly 'issue alice /O=Admin/CN=alice extendedKeyUsage=clientAuth'
try "cat >tracker.yaml <<'EOF'
node_tracker_service:
  https_keypairs: [{key_file: tracker.key, cert_file: tracker.crt}]
  client_ca_file: ca.crt
  client_auth: required
  diag_addr: 127.0.0.1:3030
  data_dir: data
  snapshot_interval: 1s
EOF"
try 'nodetracker validate tracker.yaml'
try 'wait_for() { until grep -m 1 -E "$1" tracker.log; do sleep 0.1; done; }'
try 'start() {
  : >tracker.log
  nodetracker serve --config tracker.yaml >>tracker.log 2>&1 &
  wait_for "^listening on|^nodetracker: "
}'
start_tracker
try 'export NODETRACKER_ADDR=https://127.0.0.1:3029 NODETRACKER_CA_FILE=ca.crt'
export NODETRACKER_ADDR="https://127.0.0.1:${ports[0]}"
try 'export NODETRACKER_CERT_FILE=alice.crt NODETRACKER_KEY_FILE=alice.key'
try 'nodetracker add node-1 proxy-1 10.0.0.1:3080 --cert-file proxy-1.crt --key-file proxy-1.key'
try 'nodetracker rm-proxy proxy-1 --cert-file proxy-1.crt --key-file proxy-1.key'
try 'env -u NODETRACKER_CERT_FILE -u NODETRACKER_KEY_FILE nodetracker get node-1'
try 'nodetracker stats | grep -E "^(routes|nodes|proxies) "'
try 'nodetracker top --once --tab overview --config tracker.yaml | grep -E "State|Nodes|Proxies|Certificate"'
try 'nodetracker log-level debug --for 1m'
try 'wait_for "wrote 1 routes"'
try 'kill -9 $!'
start_tracker
try 'nodetracker explain node-1'
try 'nodetracker drain'
start_tracker
try 'nodetracker get node-1'
try 'nodetracker drain'

for port in "${ports[@]}"; do sed -i "s/127\.0\.0\.1:$port\b/127.0.0.1:3029/g" "$session"; done
sed -E -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{6}Z/2026-11-24T21:15:13.203542Z/' \
  -e 's/[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z/2026-11-24T21:15:13.778Z/' \
  -e 's/ \([^)]* ago\)/ (9s ago)/; s/Z  [0-9]+s +returned/Z  9s   returned/' \
  -e 's/[0-9]+ bytes, in [0-9.]+[mµ]?s$/142 bytes, in 2ms/' "$session"
