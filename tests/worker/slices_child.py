"""Any rank but the first of a team without a model, as a process: a pool of slices, and the words that rank 0 says.

`python -m tests.worker.slices_child RANK SIZE MEETING DEVICE NUM_BLOCKS SLICE_BYTES`. STEP: after so many milliseconds,
this is added to every byte. CLEAR: all is forgotten.
"""

import os
import sys
import time

import torch

from kernels.device.seam import device_of, find_device
from worker.ranks.blocks import MemberSlices
from worker.ranks.team import CLEAR, END, MOVE, STEP, RankPlace, Team


def slices_of(rank: int, num_blocks: int, slice_bytes: int) -> torch.Tensor:
    """What a rank holds at first."""
    random = torch.Generator().manual_seed(rank)
    return torch.randint(0, 256, (num_blocks, slice_bytes), dtype=torch.uint8, generator=random)


def main() -> None:
    rank, size, num_blocks, slice_bytes = (int(sys.argv[at]) for at in (1, 2, 5, 6))
    device = find_device(sys.argv[4])
    seam = device_of(device)
    seam.bind()
    team = Team(RankPlace(rank, size, sys.argv[3]), device)
    with seam.may_wait():
        pool = slices_of(rank, num_blocks, slice_bytes).to(device)
    mover = MemberSlices(pool, team)
    while True:
        kind, words = team.hear()
        if kind == END:
            os._exit(0)
        if kind == STEP:
            time.sleep(words[0].tolist()[0] / 1000)
            pool.add_(words[1].tolist()[0])
        elif kind == CLEAR:
            pool.zero_()
        elif kind == MOVE:
            mover.join(words)
        mover.obeyed()


if __name__ == "__main__":
    main()
