"""The GPU's part of `quire bench kernels`, rehearsed on the twin in Triton's interpreter: all of it but the figures.

In a process of its own, because Triton decides at import whether kernels are interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def rehearse(path: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cluster.bench", "kernels", "--interpret", "--json", str(path), *options]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    print(done.stdout[-4000:], done.stderr[-2000:])
    assert done.returncode == 0
    found: dict[str, Any] = json.loads(path.read_text())
    assert all(check["ok"] for check in found["checks"])
    return found


@pytest.mark.timeout(300)
def test_attention_and_what_surrounds_it_is_timed_and_checked(tmp_path: Path) -> None:
    sections = [
        word for name in ("decode", "traffic", "prefill", "mixed", "graph", "around") for word in ("--section", name)
    ]
    found = rehearse(tmp_path / "out.json", "--shape", "llama-8b", *sections, "--trace")
    tables = found["tables"]
    assert {"decode", "decode, unequal lengths", "prefill", "decode step", "around attention", "targets"} <= set(tables)
    first = tables["decode"][0]
    # Peers that need no GPU are timed too, and only after they were found right.
    assert all(first[f"{peer} us"] > 0 for peer in ("sdpa", "gather+sdpa"))
    assert first["varlen us"] is first["flex us"] is None
    assert all(any(note.startswith(f"{peer} left out") for note in found["notes"]) for peer in ("varlen", "flex"))
    assert len(found["checks"]) >= 12


@pytest.mark.trust
@pytest.mark.timeout(300)
def test_tuning_compares_choices_with_the_table(tmp_path: Path) -> None:
    found = rehearse(tmp_path / "out.json", "--tune", "--shape", "llama-8b", "--no-peers")
    for schedule in ("flat", "parts"):
        rows = found["tables"][f"tuning interpreter, {schedule}, llama-8b"]
        assert min(row["time over the table's"] for row in rows) <= 1.0
        assert any(row["time over the table's"] == 1.0 for row in rows)
    assert sum(note.startswith("for the table") for note in found["notes"]) == 2
