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

quire_setup serve,http,gguf,dev
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}"

logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
report=()
summaries=()
failed=()
begun=$SECONDS

# Runs a check in front, what it prints included.
check() {
    local name="$1" began=$SECONDS
    shift
    say "== $name"
    "$@" || failed+=("$name")
    report+=("$(printf '%5d s  %s' $((SECONDS - began)) "$name")")
}

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
top=()
pairs=()
alone=()
for target in "${targets[@]}"; do
    case "$target" in
    tests/test_*.py) top+=("$target") ;;
    # These use all cores by themselves, or look at times.
    tests/sim | tests/deploy | tests/kernels | tests/torture) alone+=("$target") ;;
    *) pairs+=("$target") ;;
    esac
done

# 40 minutes are far above what any folder may take; they only make sure that the run ends.
run_pytest() {
    local name="$1" began=$SECONDS status
    shift
    timeout --kill-after 20 "${QUIRE_FOLDER_LIMIT_S:-2400}" "$QUIRE_BIN/python" -m pytest --durations 5 --durations-min 5 \
        "${trust[@]}" "$@" >"$logs/out" 2>&1
    status=$?
    [ "$status" -ne 124 ] || say "error: $name ran longer than ${QUIRE_FOLDER_LIMIT_S:-2400} s and was stopped" >>"$logs/out"
    printf '%s\n' "$status" "$((SECONDS - began))" >"$logs/status"
}

# Starts the tests of one name in the background; what they print is shown when they have ended.
start() {
    local name="$1"
    mkdir -p "$logs/$name"
    say "== $name begins"
    (logs="$logs/$name" && run_pytest "$@") &
    running["$name"]=$!
}

# Shows what has ended, and takes note of it.
gather() {
    local name status took
    for name in "${!running[@]}"; do
        if [ -f "$logs/$name/status" ]; then
            wait "${running[$name]}"
            unset "running[$name]"
            { read -r status && read -r took; } <"$logs/$name/status"
            say "== $name"
            cat "$logs/$name/out"
            report+=("$(printf '%5d s  %s' "$took" "$name")")
            summaries+=("$name" "$(grep -E '(passed|failed|error|skipped|no tests ran).* in [0-9.]+s' "$logs/$name/out" | tail -n 1)")
            [ "$status" -eq 0 ] || failed+=("$name")
        fi
    done
}

# Ctrl-C ends what runs in the background too.
declare -A running=()
trap 'trap - INT; kill "${running[@]}" 2>/dev/null; wait; exit 130' INT
room_for() {
    while [ "${#running[@]}" -ge "$1" ]; do
        wait -n "${running[@]}" 2>/dev/null
        gather
    done
}
[ ${#top[@]} -eq 0 ] || start "tests/*.py" "${top[@]}"
for group in "${pairs[@]}"; do
    room_for 2
    start "$group" "$group"
done
for group in "${alone[@]}"; do
    room_for 1
    start "$group" "$group"
done
room_for 1

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
