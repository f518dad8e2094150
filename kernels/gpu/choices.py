"""How the Triton kernels are cut for a device: tiles, warps, pipeline stages and programs, in one table.

`backend` asks once per shape; nothing is tuned while serving. To find better figures on a device, run
`quire bench kernels --tune` there and write them down here. Compiled resource use of every row is held by tests for
sm_80, sm_90, sm_100 and gfx942.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import triton

from kernels.device.seam import Family, device_of

Schedule = Literal["flat", "parts"]

MAX_GROUP = 128


@dataclass(frozen=True)
class Choice:
    """One way to run attention. `rows` is the height of a query tile; the flat schedule grows it to fit a group."""

    rows: int
    tile: int
    warps: int
    stages: int
    programs_per_sm: int
    precision: str = "ieee"  # of products of float32: "ieee", or "tf32x3" where tensor cores come close to it
    split_edges: bool = True  # tiles that every row sees whole are computed without masks, in a loop of their own
    edge_stages: int = 1  # pipeline stages of the other tiles' loop


@dataclass(frozen=True)
class DeviceFacts:
    """What the choices depend on. `fixed` overrides the table, for tuning and tests."""

    family: Family
    num_sms: int
    fixed: tuple[tuple[Schedule, Choice], ...] = ()


# (family, schedule, padded head size, bytes per element) -> Choice. A head size between two rows takes the larger one.
_TABLE: dict[tuple[Family, Schedule, int, int], Choice] = {
    # 99 KB of shared memory at most, so that it serves sm_86, sm_89 and sm_120 too.
    ("sm80", "flat", 64, 2): Choice(rows=16, tile=128, warps=4, stages=3, programs_per_sm=2),
    ("sm80", "flat", 128, 2): Choice(rows=16, tile=64, warps=4, stages=3, programs_per_sm=2),
    ("sm80", "flat", 256, 2): Choice(rows=16, tile=32, warps=4, stages=3, programs_per_sm=2),
    ("sm80", "flat", 128, 4): Choice(rows=16, tile=32, warps=8, stages=3, programs_per_sm=1, precision="tf32x3"),
    ("sm80", "flat", 256, 4): Choice(
        rows=16, tile=16, warps=8, stages=1, programs_per_sm=1, precision="tf32x3", split_edges=False
    ),
    ("sm80", "parts", 64, 2): Choice(rows=128, tile=64, warps=8, stages=3, programs_per_sm=1),
    ("sm80", "parts", 128, 2): Choice(rows=64, tile=32, warps=4, stages=3, programs_per_sm=2),
    ("sm80", "parts", 256, 2): Choice(rows=64, tile=32, warps=8, stages=2, programs_per_sm=1),
    ("sm80", "parts", 128, 4): Choice(rows=32, tile=32, warps=8, stages=2, programs_per_sm=1, precision="tf32x3"),
    ("sm80", "parts", 256, 4): Choice(rows=16, tile=16, warps=8, stages=1, programs_per_sm=1, precision="tf32x3"),
    # 227 KB of shared memory.
    ("sm90", "flat", 64, 2): Choice(rows=16, tile=128, warps=4, stages=3, programs_per_sm=3),
    ("sm90", "flat", 128, 2): Choice(rows=16, tile=64, warps=4, stages=3, programs_per_sm=3),
    ("sm90", "flat", 256, 2): Choice(rows=16, tile=32, warps=4, stages=4, programs_per_sm=2),
    ("sm90", "flat", 128, 4): Choice(rows=16, tile=32, warps=8, stages=3, programs_per_sm=1, precision="tf32x3"),
    ("sm90", "flat", 256, 4): Choice(rows=16, tile=16, warps=8, stages=1, programs_per_sm=1, precision="tf32x3"),
    ("sm90", "parts", 64, 2): Choice(rows=128, tile=128, warps=8, stages=3, programs_per_sm=1),
    ("sm90", "parts", 128, 2): Choice(rows=128, tile=64, warps=8, stages=3, programs_per_sm=1),
    ("sm90", "parts", 256, 2): Choice(rows=128, tile=32, warps=8, stages=3, programs_per_sm=1),
    ("sm90", "parts", 128, 4): Choice(rows=32, tile=32, warps=8, stages=2, programs_per_sm=1, precision="tf32x3"),
    ("sm90", "parts", 256, 4): Choice(rows=16, tile=16, warps=8, stages=2, programs_per_sm=1, precision="tf32x3"),
    ("sm100", "flat", 64, 2): Choice(rows=16, tile=128, warps=4, stages=3, programs_per_sm=3),
    ("sm100", "flat", 128, 2): Choice(rows=16, tile=64, warps=4, stages=3, programs_per_sm=3),
    ("sm100", "flat", 256, 2): Choice(rows=16, tile=32, warps=4, stages=4, programs_per_sm=2),
    ("sm100", "flat", 128, 4): Choice(rows=16, tile=32, warps=8, stages=3, programs_per_sm=1, precision="tf32x3"),
    ("sm100", "flat", 256, 4): Choice(rows=16, tile=16, warps=8, stages=1, programs_per_sm=1, precision="tf32x3"),
    ("sm100", "parts", 64, 2): Choice(rows=128, tile=128, warps=8, stages=3, programs_per_sm=1),
    ("sm100", "parts", 128, 2): Choice(rows=128, tile=64, warps=8, stages=3, programs_per_sm=1),
    ("sm100", "parts", 256, 2): Choice(rows=64, tile=64, warps=8, stages=2, programs_per_sm=1),
    ("sm100", "parts", 128, 4): Choice(rows=32, tile=32, warps=8, stages=2, programs_per_sm=1, precision="tf32x3"),
    ("sm100", "parts", 256, 4): Choice(rows=16, tile=16, warps=8, stages=2, programs_per_sm=1, precision="tf32x3"),
    # 64 KB of shared memory, float32 in the matrix units.
    ("cdna3", "flat", 64, 2): Choice(rows=16, tile=64, warps=4, stages=2, programs_per_sm=2),
    ("cdna3", "flat", 128, 2): Choice(rows=16, tile=64, warps=4, stages=2, programs_per_sm=2),
    ("cdna3", "flat", 256, 2): Choice(rows=16, tile=32, warps=4, stages=2, programs_per_sm=2),
    ("cdna3", "flat", 256, 4): Choice(rows=16, tile=16, warps=4, stages=1, programs_per_sm=2),
    ("cdna3", "parts", 128, 2): Choice(rows=128, tile=64, warps=4, stages=1, programs_per_sm=1),
    ("cdna3", "parts", 256, 2): Choice(rows=64, tile=32, warps=4, stages=1, programs_per_sm=1),
    ("cdna3", "parts", 128, 4): Choice(rows=64, tile=16, warps=4, stages=1, programs_per_sm=1),
    ("cdna3", "parts", 256, 4): Choice(rows=32, tile=16, warps=4, stages=1, programs_per_sm=1),
    # Small, because every operation there costs the same; several tiles and parts come together soon.
    ("interpreter", "flat", 256, 4): Choice(rows=16, tile=16, warps=4, stages=1, programs_per_sm=2),
    ("interpreter", "parts", 256, 4): Choice(rows=32, tile=32, warps=4, stages=1, programs_per_sm=2),
}


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors of the CPU."""
    return bool(triton.knobs.runtime.interpret)


def device_facts(device: torch.device) -> DeviceFacts:
    facts = device_of(device).facts()
    return DeviceFacts(facts.family, facts.num_sms)


def choose(facts: DeviceFacts, schedule: Schedule, dim_pad: int, itemsize: int) -> Choice:
    """The row of the table for this shape."""
    for fixed_schedule, choice in facts.fixed:
        if fixed_schedule == schedule:
            return choice
    wanted = (facts.family, schedule)
    fits = [key for key in _TABLE if key[:2] == wanted and key[2] >= dim_pad and key[3] >= itemsize]
    if not fits:
        raise ValueError(f"no choice for {wanted}, head size {dim_pad}, {itemsize} bytes per element")
    return _TABLE[min(fits, key=lambda key: (key[3], key[2]))]
