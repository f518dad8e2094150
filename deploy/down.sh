#!/usr/bin/env bash
# Ends everything that up.sh or quickstart.sh started on this machine, also after a crash, and proves that nothing is left.
set -eu
cd "$(dirname "$0")/.."
source deploy/setup.sh
quire_setup serve,http
exec "$QUIRE_BIN/quire" down "$@"
