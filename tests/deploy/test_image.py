"""The container image: it is built where a builder is, and its entry point starts, answers and stops clean in it; and
the same steps without an image, from what is copied, with this machine's Python and packages.

The builder is buildah, which needs no daemon, and the base is a Debian by debootstrap in the place of the one that the
Dockerfile names, so that no registry need be in reach: `apt-get install buildah debootstrap`, as root.
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
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.deploy.lifecycle import ROOT, UP, Holdings, environment, noted, parents

pytestmark = [pytest.mark.trust]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
IGNORED = ROOT / "deploy" / "Dockerfile.dockerignore"
LEFT_OUT = [line.removeprefix("**/") for line in IGNORED.read_text().split()]
PORTS = ("QUIRE_PORT", "QUIRE_ADMIN_PORT", "QUIRE_METRICS_PORT", "QUIRE_HTTP_PORT", "QUIRE_PAGE_PORT")
CAN_BUILD = os.geteuid() == 0 and all(map(shutil.which, ("buildah", "debootstrap")))


def words_of(instruction: str) -> list[str]:
    """What an instruction of the form that is no shell's runs."""
    found = re.search(rf"^{instruction}.*?(\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert found is not None, f"there is no {instruction}"
    words: list[str] = json.loads(found[1])
    return words


def lives(within: Sequence[str], folder: Path, home: Path, around: dict[str, str], told: Path) -> None:
    """Starts the entry point within a container, or nothing, and ends it as `docker stop` does."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*within, *words], cwd=folder, env=around, capture_output=True, text=True, timeout=100, check=False
        )

    checks, entry = words_of("HEALTHCHECK"), [*words_of("ENTRYPOINT"), *UP[1:]]
    assert run(*checks).returncode == 3, "what has not started is not healthy"
    with told.open("w") as output:
        container = subprocess.Popen(
            [*within, *entry], cwd=folder, env=around, stdout=output, stderr=output, start_new_session=True
        )
        try:
            until = time.monotonic() + 250
            while "ready after" not in told.read_text():
                assert container.poll() is None and time.monotonic() < until, told.read_text()
                time.sleep(0.5)
            held = Holdings.of(home)
            assert run(*checks).returncode == 0
            answer = run("quire", "generate", "--quiet", "--max-tokens", "5", "Once upon a time")
            assert answer.stdout.startswith("Once upon a time, a"), answer.stderr
        finally:
            # To the first process of the container alone.
            os.kill(first_process(container.pid, entry), signal.SIGTERM)
            ended = container.wait(100)
    said = told.read_text()
    assert ended == 0 and "nothing is left" in said, said
    assert held.processes and not held.left(5.0) and not noted(home)


def first_process(pid: int, entry: Sequence[str]) -> int:
    """The process that runs the entry point: this one, or one that the builder started for us."""
    above = parents()
    for one in above:
        under = one
        while under != pid and under in above:
            under = above[under]
        if under == pid:
            try:
                line = (Path("/proc") / str(one) / "cmdline").read_bytes().split(b"\0")[1:-1]
            except OSError:
                continue
            if line == [word.encode() for word in entry[1:]]:
                return one
    return pid


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
    lives([], image / "quire", home, around, image / "told")


class Builder:
    """buildah with a store of its own."""

    def __init__(self, folder: Path) -> None:
        self._own = ["buildah", "--root", str(folder / "store"), "--runroot", str(folder / "run")]

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._own, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words[0]}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"
        return done.stdout.strip()

    def within(self, container: str) -> list[str]:
        """What stands before a command that runs in a container. The ports are any that are free."""
        ports = [word for name in PORTS for word in ("--env", f"{name}=0")]
        return [*self._own, "run", "--isolation", "chroot", *ports, container, "--"]


@pytest.fixture
def builder() -> Iterator[Builder]:
    folder = Path(tempfile.mkdtemp(prefix="quire-image-"))
    build = Builder(folder)
    yield build
    if build("containers", "--quiet"):
        build("rm", "--all")
    build("rmi", "--all", "--force")
    shutil.rmtree(folder, ignore_errors=True)


def pip_words() -> list[str]:
    """This machine's pip configuration for the build: its settings as arguments, the folders they name as volumes."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    words, certificates = [], "/etc/ssl/certs/ca-certificates.crt"
    for name, value in re.findall(r"^[^.]*\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE):
        if name in ("index-url", "extra-index-url", "find-links"):
            words += ["--build-arg", f"PIP_{name.replace('-', '_').upper()}={value}"]
            folders = {Path(one.removeprefix("file://")) for one in value.split() if one.startswith(("/", "file:"))}
            for folder in {one.parent if one.name == "simple" else one for one in folders}:
                words += ["--volume", f"{folder}:{folder}:ro"]
    return [*words, "--volume", f"{certificates}:{certificates}:ro"]


@pytest.mark.skipif(not CAN_BUILD, reason="no image is built here: apt-get install buildah debootstrap, as root")
@pytest.mark.timeout(900)
def test_the_image_is_built_and_its_container_starts_answers_and_ends(builder: Builder, tmp_path: Path) -> None:
    """About five minutes: the packages are downloaded as by anybody who builds it."""
    base = re.search(r"^FROM (.*)$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    packages = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", tmp_path / "base"], check=True)
    scratch = builder("from", "scratch")
    builder("copy", "--quiet", scratch, str(tmp_path / "base"), "/")
    builder("commit", "--quiet", "--rm", scratch, f"docker.io/library/{base[1]}")
    shutil.rmtree(tmp_path / "base")
    where = ["--isolation", "chroot", "--pull-never", "--format", "docker", "--ignorefile", str(IGNORED)]
    builder("build", *where, *pip_words(), "-f", "deploy/Dockerfile", "-t", "quire:0.1", ".")
    container = builder("from", "--pull-never", "localhost/quire:0.1")
    home = Path(builder("mount", container)) / "home" / "quire" / ".local" / "state" / "quire"
    lives(builder.within(container), ROOT, home, dict(os.environ), tmp_path / "told")
