"""`python -m tests.fuzz READER --runs N`: bytes that coverage leads into a reader (see `readers.py`), by libFuzzer.

Needs `pip install atheris`. What ends it is printed and kept under the folder that --keep names, with the input; so are
inputs that found something new, to go on from.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

MOST_S, MOST_MB, MOST_BYTES = 5, 2_048, 1 << 16


def main() -> None:
    with atheris.instrument_imports(include=["cluster"]):
        from tests.fuzz.readers import TARGETS, checked
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("reader", choices=TARGETS)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.mkdtemp()))
    options = parser.parse_args()
    found = options.keep / options.reader
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        read, good = TARGETS[options.reader](Path(folder))
        for number, raw in enumerate(good):
            checked(read)(raw)
            (found / f"good-{number}").write_bytes(raw)
        bounds = (f"-timeout={MOST_S}", f"-rss_limit_mb={MOST_MB}", f"-max_len={MOST_BYTES}")
        told = (f"-runs={options.runs}", f"-seed={options.seed}", f"-artifact_prefix={found}/", "-verbosity=1")
        atheris.Setup([sys.argv[0], *told, *bounds, str(found)], checked(read))
        atheris.Fuzz()


main()
