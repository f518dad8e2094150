"""The container image's own steps: what is copied is enough to run, its entry point starts, answers and stops clean.

No registry need be in reach and nothing is installed: base image and packages are this machine's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.lifecycle import ROOT, UP, Holdings, environment, noted

pytestmark = [pytest.mark.trust]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
LEFT_OUT = [line.removeprefix("**/") for line in (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().split()]


def words_of(instruction: str) -> list[str]:
    """What an instruction of the form that is no shell's runs."""
    found = re.search(rf"^{instruction}.*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None, f"there is no {instruction}"
    words: list[str] = json.loads(found[1])
    return words


@pytest.fixture
def image() -> Iterator[Path]:
    """The folder that the image is made of, with a home beside it."""
    folder = Path(tempfile.mkdtemp(prefix="quire-image-"))
    shutil.copytree(ROOT, folder / "quire", ignore=shutil.ignore_patterns(*LEFT_OUT, "*.egg-info"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(400)
def test_the_entry_point_starts_answers_and_ends_when_it_is_stopped(image: Path) -> None:
    home = image / "home"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    around = environment(home, PATH=path, PYTHONPATH=str(image / "quire"), QUIRE_HTTP_PORT="0", QUIRE_PAGE_PORT="0")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=image / "quire", env=around, capture_output=True, text=True, timeout=100, check=False
        )

    checks = words_of("HEALTHCHECK")
    assert run(*checks).returncode == 3, "what has not started is not healthy"
    with (image / "told").open("w+") as told:
        container = subprocess.Popen(
            [*words_of("ENTRYPOINT"), *UP[1:]],
            cwd=image / "quire", env=around, stdout=told, stderr=told, start_new_session=True,
        )  # fmt: skip
        try:
            until = time.monotonic() + 250
            while "ready after" not in (image / "told").read_text():
                assert container.poll() is None and time.monotonic() < until, (image / "told").read_text()
                time.sleep(0.5)
            held = Holdings.of(home)
            assert run(*checks).returncode == 0
            answer = run("quire", "generate", "--quiet", "--max-tokens", "5", "Once upon a time")
            assert answer.stdout.startswith("Once upon a time, a"), answer.stderr
        finally:
            # As `docker stop` does it: to the first process alone.
            os.kill(container.pid, signal.SIGTERM)
            ended = container.wait(100)
    said = (image / "told").read_text()
    assert ended == 0 and "nothing is left" in said, said
    assert held.processes and not held.left(5.0) and not noted(home)
