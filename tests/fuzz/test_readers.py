"""Bytes that coverage leads, into every reader of what others send or write: see `readers.py`. Needs `atheris`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz.readers import TARGETS, checked

RUNS = {"journal": 3_000, "tokenizer.json": 1_000}
MANY = 100_000


@pytest.mark.trust
@pytest.mark.timeout(300)
@pytest.mark.parametrize("reader", TARGETS)
def test_whatever_is_read_is_good_or_refused(reader: str, seed: int) -> None:
    pytest.importorskip("atheris", reason="needs `pip install atheris`")
    num = RUNS.get(reader, 3_000 if reader.endswith(".json") else MANY)
    words = (sys.executable, "-m", "tests.fuzz", reader, "--runs", str(num), "--seed", str(seed or 1))
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=290)
    assert not done.returncode, done.stderr[-3_000:]


@pytest.mark.parametrize("reader", TARGETS)
def test_what_it_begins_from_is_read(reader: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    read, good = TARGETS[reader](tmp_path_factory.mktemp("file"))
    for raw in good:
        checked(read)(raw)
