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

if [ ${#targets[@]} -eq 0 ]; then
    # The files at the top of tests/ first, then every folder that has tests.
    targets=(tests/test_*.py)
    for folder in tests/*/; do
        [ -z "$(find "$folder" -name 'test_*.py' -print -quit)" ] || targets+=("${folder%/}")
    done
fi

# The top-level files share one process, each folder has its own: what one leaves behind does not reach the next.
# Folders whose processes talk to each other run two at a time. What brings up clusters as users do, or kills them all
# the time, has none of these beside it. What only computes takes what they leave, below them in priority.
top=()
talking=()
alone=()
computing=("mypy --strict")
for target in "${targets[@]}"; do
    case "$target" in
    tests/test_*.py) top+=("$target") ;;
    tests/deploy | tests/torture) alone+=("$target") ;;
    tests/engine | tests/kernels) computing+=("$target") ;;
    # Whole histories take all cores: they come last, and the rest of their folder needs one.
    tests/sim) computing+=("tests/sim --ignore=tests/sim/test_histories.py" "tests/sim/test_histories.py") ;;
    # The longest begin first, so that none of them is left over at the end.
    tests/cluster | tests/worker) talking=("$target" "${talking[@]}") ;;
    *) talking+=("$target") ;;
    esac
done
[ ${#top[@]} -eq 0 ] || computing=("tests/*.py" "${computing[@]}")

failed_line='^(tests/[^ ]+ )?[.sxX]*[FE][.sxXFE]*( |$)'
summary_line='(passed|failed|error|skipped|no tests ran).* in [0-9.]+s'

# Runs a part and leaves what it printed, its status and its seconds. 40 minutes are far above what any may take; they
# only make sure that the run ends.
run_part() {
    local began=$SECONDS status
    timeout --kill-after 20 "${QUIRE_FOLDER_LIMIT_S:-2400}" "$@" >"$logs/out" 2>&1
    status=$?
    if [ "$status" -eq 1 ] && [[ "$*" = *" pytest "* ]] && ! grep -qE "$summary_line|$failed_line" "$logs/out"; then
        # A process that leaves a Ray cluster after it was with another one before is ended by Ray 2.60 now and then: its
        # metrics still go to the first one, and what takes their answers finds no core worker any more.
        say $'\nerror: the process ended within a test, and no test had failed; all of it once more' >>"$logs/out"
        timeout --kill-after 20 "${QUIRE_FOLDER_LIMIT_S:-2400}" "$@" >>"$logs/out" 2>&1
        status=$?
    fi
    [ "$status" -ne 124 ] || say "error: it ran longer than ${QUIRE_FOLDER_LIMIT_S:-2400} s and was stopped" >>"$logs/out"
    printf '%s\n' "$status" "$((SECONDS - began))" >"$logs/status"
}

# Parts that run in the background, and what kind each is of.
declare -A running=() kinds=()

# Starts a part, whose words are its name; what it prints is shown when it has ended.
start() {
    local kind="$1" name="$2" words command
    read -ra words <<<"$name"
    case "$name" in
    mypy*) command=("$QUIRE_BIN/mypy" --no-error-summary) ;;
    *)
        [ "$name" != "tests/*.py" ] || words=("${top[@]}")
        command=("$QUIRE_BIN/python" -m pytest --durations 5 --durations-min 5 "${trust[@]}" "${words[@]}")
        ;;
    esac
    if [ "$kind" = computing ]; then
        # Below the others, it may stand still for long.
        case "$name" in mypy*) ;; *) command+=(--timeout 600) ;; esac
        command=(nice -n 10 "${command[@]}")
    fi
    mkdir -p "$logs/$name"
    say "== $name begins"
    (logs="$logs/$name" && run_part "${command[@]}") &
    running["$name"]=$!
    kinds["$name"]="$kind"
}

# Shows what has ended, and takes note of it.
gather() {
    local name status took summary
    for name in "${!running[@]}"; do
        # Without a status it was killed from outside.
        if [ -f "$logs/$name/status" ] || ! kill -0 "${running[$name]}" 2>/dev/null; then
            wait "${running[$name]}"
            unset "running[$name]"
            status=1 took=0
            [ ! -f "$logs/$name/status" ] || { read -r status && read -r took; } <"$logs/$name/status"
            say "== $name"
            cat "$logs/$name/out"
            report+=("$(printf '%5d s  %s' "$took" "$name")")
            summary="$(grep -E "$summary_line" "$logs/$name/out" | tail -n 1)"
            [ -z "$summary" ] || summaries+=("$name" "$summary")
            [ "$status" -eq 0 ] || failed+=("$name")
        fi
    done
}

# How many parts of a kind are running.
num_of() {
    local name found=0
    for name in "${!running[@]}"; do
        [ "${kinds[$name]}" != "$1" ] || found=$((found + 1))
    done
    echo "$found"
}

# Starts all that there is room for.
fill() {
    while [ ${#talking[@]} -gt 0 ] && [ "$(num_of talking)" -lt 2 ]; do
        start talking "${talking[0]}"
        talking=("${talking[@]:1}")
    done
    if [ ${#alone[@]} -gt 0 ] && [ "$(num_of talking)" -eq 0 ] && [ "$(num_of alone)" -eq 0 ]; then
        start alone "${alone[0]}"
        alone=("${alone[@]:1}")
    fi
    # Beside others one is enough to leave no core idle; more would only make all of them late.
    local most=2
    [ "$(num_of talking)" -eq 0 ] && [ "$(num_of alone)" -eq 0 ] || most=1
    while [ ${#computing[@]} -gt 0 ] && [ "$(num_of computing)" -lt "$most" ]; do
        start computing "${computing[0]}"
        computing=("${computing[@]:1}")
    done
}

# Ctrl-C ends what runs in the background too.
trap 'trap - INT; kill "${running[@]}" 2>/dev/null; wait; exit 130' INT

for check in "ruff check" "ruff format --check"; do
    say "== $check"
    # shellcheck disable=SC2086  # these are words
    "$QUIRE_BIN"/$check --quiet . || failed+=("$check")
done
# Where the environment keeps Python from writing bytecode, each of some hundred processes would compile all that it needs.
"$QUIRE_BIN/python" -m compileall -q cluster worker kernels protos
fill
while [ ${#running[@]} -gt 0 ]; do
    wait -n "${running[@]}" 2>/dev/null
    gather
    fill
done

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
