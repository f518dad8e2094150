#!/usr/bin/env bash
# From a fresh checkout to streaming answers: sets up the environment, then runs several prompts at once on the demo model.
# Needs only Python 3.11 or 3.12. Run again it starts at once. Arguments are handed to `quire generate`.
set -eu
cd "$(dirname "$0")/.."
source deploy/setup.sh

quire_setup serve

say ""
if [ $# -gt 0 ]; then
    exec "$QUIRE_BIN/quire" generate --local "$@"
fi
say "Four requests at once on the demo model, in this process:"
"$QUIRE_BIN/quire" generate --local "Once upon a time" "Long ago, a smith" \
    --chat "What is a block?" --chat "Where does Mira live?"
say ""
say "Next: $QUIRE_BIN/quire generate --local --chat 'Tell me a story about Otto.'"
say "      $QUIRE_BIN/quire size --requests 50 --length 200"
say "      $QUIRE_BIN/quire --help"
