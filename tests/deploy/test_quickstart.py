"""deploy/quickstart.sh on a machine that is set up: it shows the main job at once and takes a user's own prompts."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.lifecycle import is_set_up_for

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not is_set_up_for(ROOT),
    reason="this environment was not made by deploy/setup.sh here, so the quick start would begin with an installation",
)


HOME = Path(tempfile.mkdtemp(prefix="quire-test-"))


def deploy(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    # Ports of its own, so that a cluster of the user beside it is left alone.
    settings = {"QUIRE_VENV": sys.prefix, "QUIRE_HOME": str(HOME), "QUIRE_PORT": "0", "QUIRE_ADMIN_PORT": "0"}
    return subprocess.run(
        [str(ROOT / "deploy" / script), *words],
        # From another folder, as somebody with a path in hand would.
        cwd="/",
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


def quickstart(*words: str) -> subprocess.CompletedProcess[str]:
    return deploy("quickstart.sh", *words)


@pytest.fixture(scope="module", autouse=True)
def _down() -> Iterator[None]:
    yield
    done = deploy("down.sh")
    assert done.returncode == 0 and "nothing is left" in done.stdout, done.stdout + done.stderr
    shutil.rmtree(HOME)


def test_it_streams_several_requests_and_says_what_is_next() -> None:
    began = time.monotonic()
    done = quickstart()
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert "up to date" in done.stdout
    for said in ("[1 Once upon a time]", "Mira lives in Alder Bridge.", "Next: "):
        assert said in done.stdout
    assert "of 2,048 used" in done.stdout
    # The bound for a quiet machine is 20 s to the first token; here it only must not hang.
    assert took < 140


def test_run_again_it_uses_the_cluster_that_is_up() -> None:
    began = time.monotonic()
    done = quickstart()
    assert done.returncode == 0, done.stderr
    assert "is used as it is" in done.stdout
    assert time.monotonic() - began < 60


def test_it_takes_prompts_of_ones_own() -> None:
    done = quickstart("--quiet", "--chat", "What is 2 plus 3?")
    assert done.returncode == 0, done.stderr
    assert "2 plus 3 is 5." in done.stdout


def test_a_wrong_option_is_one_line() -> None:
    done = quickstart("--nonsense")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
