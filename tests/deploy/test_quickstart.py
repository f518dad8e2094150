"""deploy/quickstart.sh on a machine that is set up: it shows the main job at once and takes a user's own prompts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (Path(sys.prefix) / "quire.stamp").exists(),
    reason="this environment was not made by deploy/setup.sh, so the quick start would begin with an installation",
)


def quickstart(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "deploy/quickstart.sh"), *words],
        # From another folder, as somebody with a path in hand would.
        cwd="/",
        env={**os.environ, "QUIRE_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_it_streams_several_requests_and_says_what_is_next() -> None:
    began = time.monotonic()
    done = quickstart()
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    for said in ("[1 Once upon a time]", "Mira lives in Alder Bridge.", "Next: "):
        assert said in done.stdout
    assert took < 60


def test_it_takes_prompts_of_ones_own() -> None:
    done = quickstart("--quiet", "--chat", "What is 2 plus 3?")
    assert done.returncode == 0, done.stderr
    assert "2 plus 3 is 5." in done.stdout


def test_a_wrong_option_is_one_line() -> None:
    done = quickstart("--nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
