"""deploy/setup.sh with what can be wrong on a machine: Python too old or missing, no disk, half an environment.

The script is the real one; only the programs that it asks about the machine (python, df) are put before it on PATH.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cksum", "grep", "sed", "mktemp", "cp", "rm", "awk", "dirname", "df", "head")


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder that is the whole PATH: the shell's tools and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, f"{tool} is missing on this machine"
        (folder / tool).symlink_to(found)
    (folder / "env").symlink_to("/usr/bin/env")
    return folder


def setup(machine: Path, extras: str = "serve", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(machine / "bash"), "-c", f"set -eu; source '{ROOT}/deploy/setup.sh'; quire_setup {extras}"],
        env={
            "PATH": str(machine),
            "QUIRE_VENV": str(machine.parent / "venv"),
            "HOME": str(machine.parent),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def fails_with(done: subprocess.CompletedProcess[str], *says: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    for text in says:
        assert text in done.stderr
    assert not (Path(done.args[0]).parents[1] / "venv").exists()


def test_no_python_at_all(machine: Path) -> None:
    fails_with(setup(machine), "no Python 3.11 or 3.12 found", "no python at all")


def test_python_too_old(machine: Path) -> None:
    program(machine, "python3", "echo 3.9")
    fails_with(setup(machine), "python3 is 3.9", "install one or set QUIRE_PYTHON")


def test_a_shim_with_no_python_behind_it_is_passed_over(machine: Path) -> None:
    program(machine, "python3", "echo 'command not found' >&2; exit 127")
    program(machine, "python3.12", "echo 3.13")
    fails_with(setup(machine), "python3.12 is 3.13")


def test_a_chosen_python_that_does_not_do(machine: Path) -> None:
    program(machine, "old", "echo 3.10")
    fails_with(setup(machine, QUIRE_PYTHON=str(machine / "old")), "is Python 3.10; Quire needs 3.11 or 3.12")
    fails_with(setup(machine, QUIRE_PYTHON="nowhere"), "QUIRE_PYTHON=nowhere does not run")


def test_a_python_that_makes_no_environments(machine: Path) -> None:
    program(machine, "python3", 'case "$2" in *venv*) exit 1 ;; *) echo 3.11 ;; esac')
    fails_with(setup(machine), "cannot make virtual environments", "python3-venv")


def test_no_disk(machine: Path) -> None:
    (machine / "df").unlink()
    program(machine, "df", "printf 'Filesystem Blocks Used Available\\n/dev/x 1 1 102400\\n'")
    (machine / "python3").symlink_to(sys.executable)
    fails_with(setup(machine), "only 100 MB are free", "QUIRE_VENV")


def test_ready_is_over_at_once_and_changes_make_it_unready(machine: Path) -> None:
    """The stamp counts only for the same project file and versions, and for no more extras than were installed."""
    venv = machine.parent / "venv"
    (venv / "bin").mkdir(parents=True)
    program(venv / "bin", "python", "exit 0")
    program(venv / "bin", "quire", "exit 0")
    made = subprocess.run(
        ["bash", "-c", f"source '{ROOT}/deploy/setup.sh'; _fingerprint"], capture_output=True, text=True, check=True
    ).stdout
    (venv / "quire.stamp").write_text(f"{made}serve,dev\n")
    for extras in ("serve", "serve,dev"):
        done = setup(machine, extras)
        assert (done.returncode, done.stderr) == (0, "")
        assert "is up to date" in done.stdout
    (venv / "quire.stamp").write_text(f"{made}serve\n")
    assert "up to date" not in setup(machine, "serve,dev").stdout
    (venv / "quire.stamp").write_text(f"0{made}serve,dev\n")
    assert "up to date" not in setup(machine).stdout


def test_the_test_command_refuses_what_it_does_not_know() -> None:
    for words, says in ((["--fast"], "unknown option --fast"), (["tests/nowhere"], "tests/nowhere does not exist")):
        done = subprocess.run(
            [str(ROOT / "tests/run.sh"), *words],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert says in done.stderr


@pytest.mark.parametrize("is_old", [False, True])
def test_an_environment_of_another_checkout_is_left_alone(machine: Path, is_old: bool) -> None:
    """What a link leads to goes on running the code that it ran. Stamps of old do not say whose it is."""
    link, theirs, checkout = (machine.parent / name for name in ("venv", "theirs", "checkout"))
    theirs.mkdir()
    checkout.mkdir()
    link.symlink_to(theirs)
    (theirs / "quire.stamp").write_text("1 2\nserve\n" + ("" if is_old else f"{checkout}\n"))
    if is_old:
        noted = theirs / "lib" / "python3.11" / "site-packages" / "quire-0.1.0.dist-info" / "direct_url.json"
        noted.parent.mkdir(parents=True)
        noted.write_text(json.dumps({"dir_info": {"editable": True}, "url": checkout.as_uri()}))
    before = sorted(theirs.rglob("*"))
    done = setup(machine)
    assert "stays as it is; this checkout gets one of its own." in done.stdout
    fails_with(done, "no Python 3.11 or 3.12 found")
    assert sorted(theirs.rglob("*")) == before
    # That checkout is gone: then nothing is taken from it.
    checkout.rmdir()
    link.symlink_to(theirs)
    setup(machine)
    assert link.is_symlink()
