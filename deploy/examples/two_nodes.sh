#!/usr/bin/env bash
# Two Ray nodes and a worker on each. Here both are on this machine, so that it can be tried anywhere; on two machines the
# second `ray start` runs over there (../README.md says what else two machines need: tokens, certificates, a firewall).
#
#   ./deploy/examples/two_nodes.sh
set -eu
cd "$(dirname "$0")/../.."
source deploy/setup.sh
quire_setup serve,http

port="${RAY_PORT:-6399}"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="${RAY_AUTH_TOKEN:-$(openssl rand -hex 32)}"
PATH="$QUIRE_BIN:$PATH"
# What ends it ends every Ray of this user on this machine.
if quire status >/dev/null 2>&1 || ray status >/dev/null 2>&1; then
    die "a cluster of yours is up, and this example would end it; \`quire down\` does so, or \`ray stop\` for a Ray alone"
fi
head=(--head --port "$port" --node-ip-address 127.0.0.1 --num-cpus 1 --include-dashboard false)
ray start "${head[@]}" --disable-usage-stats >/dev/null
trap 'quire down || true; ray stop >/dev/null' EXIT
ray start --address "127.0.0.1:$port" --node-ip-address 127.0.0.1 --num-cpus 1 >/dev/null

quire up --address "127.0.0.1:$port" --workers 2 --cpus-per-worker 1 --kv-blocks 256 --host-memory 16MiB
quire status
quire generate "Once upon a time" "Long ago" --max-tokens 30
