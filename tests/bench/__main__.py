"""`python -m tests.bench NAME ...`: benchmarks of single parts, which only those who change them run.

Each is a file of this folder with `main(argv) -> exit code`, as those of `quire bench` are, run by the same `run`.
"""

from __future__ import annotations

import sys

from cluster.bench.__main__ import run

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], "tests.bench"))
