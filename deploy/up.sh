#!/usr/bin/env bash
# Starts a cluster whose head is this machine. Options are those of `quire up`; see `quire up --help`.
set -eu
cd "$(dirname "$0")/.."
source deploy/setup.sh
quire_setup serve,http
exec "$QUIRE_BIN/quire" up "$@"
