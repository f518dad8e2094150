"""Runs the tests of the Triton kernels in Triton's interpreter, in a process of its own.

Triton decides at import whether kernels are interpreted, and other tests of this process compile them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).parents[2]


# Triton 3.6's interpreter turns arrays of one element into numbers, which NumPy 2.4 refuses.
LOOPS = Version(version("triton")) >= Version("3.7") or Version(version("numpy")) < Version("2.4")


@pytest.mark.skipif(not LOOPS, reason="the interpreter of Triton 3.6 needs NumPy 2.3 or older")
@pytest.mark.timeout(1500)
def test_kernels_agree_with_the_reference_in_the_interpreter(seed: int) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--seed", str(seed), "--durations=5"]
    names = ("attention", "checksums", "experts", "ops", "plan", "rows", "sampling", "take")
    command += [str(Path(__file__).with_name(f"test_triton_{name}.py")) for name in names]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1480, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None and int(passed[1]) >= 60, "most of the tests did not run"
