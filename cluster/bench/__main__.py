"""`python -m cluster.bench NAME ...`: runs one benchmark from a bare checkout, without the command line's packages.

`quire bench` calls the same `run`, and so does `python -m tests.bench` with those of single parts, which only a
checkout has. Each benchmark is a file of its folder with `main(argv) -> exit code`. With `--keep LABEL` before the
name its results are kept as `tests/bench/results/LABEL.json`, from where pages quote them.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from cluster.bench.results import FOLDER

ROOT = Path(__file__).parents[2]


def names(folder: Path = Path(__file__).parent) -> list[str]:
    """The benchmarks that there are: files of this folder whose text defines `main`."""
    found = []
    for path in sorted(folder.glob("*.py")):
        if "\ndef main(" in path.read_text():
            found.append(path.stem)
    return found


def _purpose(path: Path) -> str:
    """The first sentence of a benchmark's file, which begins with its command."""
    told = ast.get_docstring(ast.parse(path.read_text())) or ""
    return re.split(r"(?<=\.)\s", told.partition(": ")[2], maxsplit=1)[0].replace("\n", " ")


def run(argv: Sequence[str], package: str = "cluster.bench") -> int:
    """Runs the benchmark of this package that `argv` begins with and returns its exit code."""
    folder = ROOT.joinpath(*package.split("."))
    known = names(folder)
    if not argv or argv[0] in ("-h", "--help"):
        command = f"python -m {package}" if package != "cluster.bench" else "quire bench"
        print(f"usage: {command} [--keep LABEL] NAME ...\n\n--keep LABEL: into tests/bench/results/LABEL.json as well")
        print(f"{command} NAME --help shows the options of one of these:\n")
        for name in known:
            print("\n".join(wrap(f"{name:12}{_purpose(folder / f'{name}.py')}", 100, subsequent_indent=" " * 12)))
        return 0
    kept: list[str] = []
    if argv[0] == "--keep":
        if len(argv) < 3 or not re.fullmatch(r"[\w-]+", argv[1]):
            print("--keep takes a label of letters, digits and hyphens, then a benchmark", file=sys.stderr)
            return 2
        if not FOLDER.parent.is_dir():
            print(f"--keep writes into a checkout, and there is no {FOLDER.parent}; use --json FILE", file=sys.stderr)
            return 2
        kept, argv = ["--json", str(FOLDER / f"{argv[1]}.json")], argv[2:]
    name, rest = argv[0].replace("-", "_"), list(argv[1:])
    if name not in known:
        print(f"error: there is no benchmark named {argv[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"{package}.{name}").main([*rest, *kept]))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
