#!/usr/bin/env bash
# Sets the project up and proves it: lint, strict types, then the tests folder by folder.
#
#   ./tests/run.sh [--trust] [FOLDER|FILE ...]     --trust also runs what takes longer than an everyday run
set -u
cd "$(dirname "$0")/.." || exit 1
source deploy/setup.sh

trust=()
targets=()
for argument in "$@"; do
    case "$argument" in
    --trust) trust=(--trust) ;;
    -*) die "unknown option $argument; tests/run.sh [--trust] [FOLDER|FILE ...]" ;;
    *)
        [ -e "$argument" ] || die "$argument does not exist; give folders or files under tests/"
        targets+=("${argument%/}")
        ;;
    esac
done

quire_setup serve,dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

failed=()
check() {
    local name="$1" begun=$SECONDS
    shift
    say "== $name"
    "$@" || failed+=("$name")
    report+=("$(printf '%5d s  %s' $((SECONDS - begun)) "$name")")
}

report=()
begun=$SECONDS
log="$(mktemp)"
trap 'rm -f "$log"' EXIT

check "ruff check" "$QUIRE_BIN/ruff" check --quiet .
check "ruff format" "$QUIRE_BIN/ruff" format --check --quiet .
check "mypy --strict" "$QUIRE_BIN/mypy" --no-error-summary

if [ ${#targets[@]} -eq 0 ]; then
    # The files at the top of tests/ first, then every folder that has tests.
    targets=(tests/test_*.py)
    for folder in tests/*/; do
        [ -z "$(find "$folder" -name 'test_*.py' -print -quit)" ] || targets+=("${folder%/}")
    done
fi

# The top-level files share one process, each folder has its own: what one leaves behind does not reach the next.
groups=()
top=()
for target in "${targets[@]}"; do
    case "$target" in tests/test_*.py) top+=("$target") ;; *) groups+=("$target") ;; esac
done

summaries=()
run_tests() {
    local name="$1"
    shift
    # 15 minutes is far above what any folder may take; it only makes sure that the run ends.
    check "$name" run_pytest "$name" "$@"
}
run_pytest() {
    local name="$1" status
    shift
    timeout --kill-after 20 "${QUIRE_FOLDER_LIMIT_S:-900}" "$QUIRE_BIN/python" -m pytest --durations 5 --durations-min 5 \
        "${trust[@]}" "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    [ "$status" -ne 124 ] || say "error: $name ran longer than ${QUIRE_FOLDER_LIMIT_S:-900} s and was stopped"
    summaries+=("$name" "$(grep -E '(passed|failed|error|skipped|no tests ran).* in [0-9.]+s' "$log" | tail -n 1)")
    return "$status"
}

[ ${#top[@]} -eq 0 ] || run_tests "tests/*.py" "${top[@]}"
for group in "${groups[@]}"; do run_tests "$group" "$group"; done

say ""
say "Time of each part:"
printf '%s\n' "${report[@]}"
printf '%5d s  all\n' $((SECONDS - begun))
say ""
printf '%s\n' "${summaries[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    say "FAILED: $(printf '%s; ' "${failed[@]}")"
    exit 1
fi
