#!/usr/bin/env bash
# Joins this machine to the Ray cluster at HOST:PORT, so that `quire up --address HOST:PORT` there can place workers here.
# The head must have been started by hand with `ray start --head --node-ip-address=IP --port=PORT` and a token (see deploy/README.md).
set -eu
cd "$(dirname "$0")/.."
source deploy/setup.sh
[ $# -ge 1 ] || die "where is the head? give HOST:PORT, as in deploy/join.sh 10.0.0.1:6379"
case "$1" in *:*) ;; *) die "$1 has no port; give HOST:PORT" ;; esac
quire_setup serve,http
# A head asks for a token as soon as its user has one, and who joins has to say that he shows it.
if [ -n "${RAY_AUTH_TOKEN:-}" ] || [ -f "${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}" ]; then
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
fi
# Ray starts workers at niceness 15, behind everything else on the machine.
export RAY_worker_niceness="${RAY_worker_niceness:-0}"
exec "$QUIRE_BIN/ray" start --address="$1" --disable-usage-stats "${@:2}"
