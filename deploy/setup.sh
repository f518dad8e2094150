# Makes the virtual environment that Quire runs in. Sourced by deploy/quickstart.sh and tests/run.sh; there is no other way
# that the project installs itself. Honours the user's pip configuration and never names an index.
#
#   quire_setup EXTRAS     EXTRAS: serve | serve,http | serve,http,gguf,dev
#
# Settings: QUIRE_PYTHON (interpreter to use), QUIRE_VENV (where the environment goes; default .venv in the checkout).
# After it $QUIRE_BIN is the environment's bin folder. Run again with nothing changed, it is over in a moment.

QUIRE_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
QUIRE_VENV="${QUIRE_VENV:-$QUIRE_ROOT/.venv}"
QUIRE_BIN="$QUIRE_VENV/bin"

say() { printf '%s\n' "$*"; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Prints the first interpreter that is Python 3.11 or 3.12; a pyenv shim without a version behind it does not count.
_find_python() {
    local candidate version seen=""
    for candidate in ${QUIRE_PYTHON:+"$QUIRE_PYTHON"} python3 python3.11 python3.12 python; do
        version="$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" || {
            [ "$candidate" != "${QUIRE_PYTHON:-}" ] || die "QUIRE_PYTHON=$QUIRE_PYTHON does not run; give the path of Python 3.11 or 3.12"
            continue
        }
        case "$version" in
        3.11 | 3.12)
            command -v "$candidate"
            return
            ;;
        esac
        [ "$candidate" != "${QUIRE_PYTHON:-}" ] || die "QUIRE_PYTHON=$QUIRE_PYTHON is Python $version; Quire needs 3.11 or 3.12"
        seen="$seen $candidate is $version;"
    done
    die "no Python 3.11 or 3.12 found (${seen:- no python at all;} looked for python3, python3.11, python3.12); install one or set QUIRE_PYTHON to it"
}

# Says what the environment was made from; the same text means that nothing has to be done.
_fingerprint() {
    { cat "$QUIRE_ROOT/pyproject.toml" "$QUIRE_ROOT/constraints.txt" && printf '%s' "$QUIRE_ROOT"; } | cksum
}

_is_ready() {
    local wanted="$1" stamp="$QUIRE_VENV/quire.stamp" made extras one
    [ -f "$stamp" ] && [ -x "$QUIRE_BIN/quire" ] && "$QUIRE_BIN/python" -c '' 2>/dev/null || return 1
    { read -r made && read -r extras; } <"$stamp"
    [ "$made" = "$(_fingerprint)" ] || return 1
    for one in ${wanted//,/ }; do
        case ",$extras," in *",$one,"*) ;; *) return 1 ;; esac
    done
}

# An environment runs the code of one checkout: through a link it would be taken away from that.
_leave_linked() {
    local owner
    [ -L "$QUIRE_VENV" ] || return 0
    # Stamps of old have no third line; pip knows as well.
    owner="$(sed -n 3p "$QUIRE_VENV/quire.stamp" 2>/dev/null)" || owner=""
    [ -n "$owner" ] || owner="$(sed -n 's|.*"url": *"file://\([^"]*\)".*|\1|p' "$QUIRE_VENV"/lib/python3*/site-packages/quire-*.dist-info/direct_url.json 2>/dev/null)" || return 0
    if [ -n "$owner" ] && [ "$owner" != "$QUIRE_ROOT" ] && [ -d "$owner" ]; then
        say "$QUIRE_VENV is a link to the environment of $owner, which stays as it is; this checkout gets one of its own."
        rm "$QUIRE_VENV"
    fi
}

# True if the interpreter already has a torch that fits: then it is used, instead of downloading another.
_has_torch() {
    "$1" - 2>/dev/null <<'PY'
import importlib.metadata as metadata
release = tuple(int(part) for part in metadata.version("torch").split("+")[0].split(".")[:2])
raise SystemExit(not (2, 11) <= release <= (2, 13))
PY
}

# Prints the version of torch that pip would install ("2.13.0+cpu", "2.13.0"), from its index metadata alone.
_torch_on_offer() {
    "$QUIRE_BIN/python" -m pip install --quiet --dry-run --no-deps --ignore-installed --only-binary :all: --report - \
        -c "$1" torch 2>/dev/null | "$QUIRE_BIN/python" -c '
import json, sys
print(json.load(sys.stdin)["install"][0]["metadata"]["version"])'
}

_need_disk() {
    local need_mb="$1" free_mb
    free_mb=$(($(df -Pk "$(dirname "$QUIRE_VENV")" | awk 'NR == 2 {print $4}') / 1024))
    [ "$free_mb" -ge "$need_mb" ] ||
        die "the environment needs $need_mb MB at $QUIRE_VENV, only $free_mb MB are free; free some space or set QUIRE_VENV to another disk"
}

# Says how much will be downloaded, checks the disk, and asks before gigabytes for a GPU that is not there.
_announce() {
    local offer="$1" answer
    case "$offer" in
    present)
        _need_disk 1500
        say "Installing; torch is there already, about 250 MB to download."
        return
        ;;
    *+cpu)
        _need_disk 3500
        say "Installing; about 650 MB to download (triton 220, torch $offer 190, ray 80, LLVM for numba 60, and the rest)."
        return
        ;;
    esac
    _need_disk 9000
    say "Installing; about 3.5 GB to download: your pip configuration offers torch $offer with its GPU libraries."
    if [ ! -e /dev/nvidiactl ]; then
        say "No NVIDIA GPU was found here. With an index of torch's CPU builds in pip's configuration it would be 650 MB."
        if [ -t 0 ] && [ -t 1 ]; then
            read -r -p "Go on with 3.5 GB? [y/N] " answer
            case "$answer" in y* | Y*) ;; *) die "stopped; point pip at a CPU build of torch (pip config set global.extra-index-url ...) and run this again" ;; esac
        fi
    fi
}

quire_setup() {
    local extras="$1" python constraints offer
    if _is_ready "$extras"; then
        say "Environment $QUIRE_VENV is up to date."
        return
    fi
    _leave_linked
    [ -f "$QUIRE_ROOT/constraints.txt" ] || die "constraints.txt is missing in $QUIRE_ROOT; this is not a whole checkout"
    python="$(_find_python)" || exit 1
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        die "$python cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv)"
    constraints="$(mktemp)"
    trap 'rm -f "$constraints"' RETURN
    cp "$QUIRE_ROOT/constraints.txt" "$constraints"
    _need_disk 500
    local site=()
    if _has_torch "$python"; then
        site=(--system-site-packages)
        offer="present"
        grep -v -E '^(torch|triton)==' "$QUIRE_ROOT/constraints.txt" >"$constraints"
    fi
    if ! "$QUIRE_BIN/python" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
        say "Making the virtual environment $QUIRE_VENV with $("$python" --version 2>&1)."
        "$python" -m venv --clear "${site[@]}" "$QUIRE_VENV" || die "could not make the virtual environment $QUIRE_VENV"
    elif "$QUIRE_BIN/python" -m pip show --quiet torch 2>/dev/null; then
        offer="present"
    fi
    if [ -z "${offer:-}" ]; then
        offer="$(_torch_on_offer "$constraints")" && [ -n "$offer" ] ||
            die "pip finds no torch $(sed -n 's/^torch==//p' "$constraints") for $("$QUIRE_BIN/python" --version); check the network and pip's configuration (pip config list)"
    fi
    _announce "$offer"
    # On a terminal pip shows how far it is; elsewhere only what went wrong.
    local quiet=(-qq)
    [ ! -t 1 ] || quiet=()
    # --only-binary: a package that had to be compiled would need a compiler on the user's machine.
    "$QUIRE_BIN/python" -m pip install "${quiet[@]}" --disable-pip-version-check --only-binary :all: -c "$constraints" \
        -e "$QUIRE_ROOT[$extras]" || die "pip could not install Quire; its message is above"
    { _fingerprint && say "$extras" && say "$QUIRE_ROOT"; } >"$QUIRE_VENV/quire.stamp"
    say "Environment $QUIRE_VENV is ready."
}
