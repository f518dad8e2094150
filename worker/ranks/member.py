"""Any rank but the first of a tensor-parallel replica: does to its slice what rank 0 says, step by step.

`run` is what starts one; it returns when rank 0 ends the replica and raises when rank 0 is gone. A member knows no
sequences, samples nothing and talks to nobody else.

How a cluster starts one: for each replica of K ranks, K actors in one placement group (one accelerator each, on one
machine). All get the same `WorkerSettings` and a `Place(rank, K, meeting)` with a meeting place that is new for every
start of the replica, such as file:///tmp/quire-REPLICA-INCARNATION. Rank 0 makes
`Worker(settings, place=place)` and serves it as ever; every other rank calls `member.run(settings, place)` on a thread
and ends its process when that returns or raises. All K must start within ten minutes of each other, and when one of
them has died all others must be started again too: rank 0 raises at its next step. Its slices of
blocks go where rank 0 wants them (`blocks.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cluster.desk.rows import Rows
from cluster.settings import WorkerSettings
from kernels.device.seam import device_of
from worker.batch import StepBuilder
from worker.graphs import capture
from worker.model.startup import WorkerParts, start
from worker.ranks.blocks import MemberSlices
from worker.ranks.team import CLEAR, COPY, END, MOVE, STEP, RankPlace, Words
from worker.state import BatchState


def run(settings: WorkerSettings, place: RankPlace) -> None:
    """Loads this rank's slice and obeys rank 0 until it ends the replica."""
    parts = start(settings, lambda line: None, place)
    team = parts.team
    assert team is not None and not team.leads
    member, mover = Member(settings, parts), MemberSlices(parts.pool.bytes, team)
    while True:
        kind, words = team.hear()
        if kind == END:
            break
        if kind == STEP:
            member.step(words)
        elif kind == COPY:
            parts.backend.copy_blocks(parts.pool.bytes, words[0].tolist(), words[1].tolist())
        elif kind == CLEAR:
            parts.pool.clear(words[0].tolist())
        elif kind == MOVE:
            mover.join(words)
        mover.obeyed()
    member.close()
    team.close()


class Member:
    """This rank's tensors of a step, laid out as rank 0 has laid out its own."""

    def __init__(self, settings: WorkerSettings, parts: WorkerParts) -> None:
        self._parts = parts
        self._seam = device_of(parts.device)
        self._state = BatchState(Rows(settings.max_batch, parts.max_model_len, settings.block_size), parts.device)
        self._builder = StepBuilder(self._state, parts.token_budget, parts.backend)
        self._graphs, _ = capture(parts, self._state, self._builder, chooses=False)

    def step(self, words: list[Words]) -> None:
        """One forward pass. The words are those of `worker.ranks.lead.Lead.step`."""
        (padded, num_shared), places, blocks, more_logits = words[0].tolist(), *words[1:4]
        parts, builder, send = self._parts, self._builder, self._seam.send
        step = builder.follow(words[4:], (places, blocks.astype(np.int32)), captured=bool(padded))
        if padded:
            assert self._graphs is not None, "rank 0 has graphs, and this rank has none"
            self._graphs.replay(padded, len(step.sampled))
        else:
            parts.model.prepare(step.attention)
            logit_rows = step.logit_rows
            if len(more_logits):
                logit_rows = torch.cat([logit_rows, send(more_logits.copy())])
            parts.model.forward(step.ids, step.positions, logit_rows)
        if num_shared:
            assert parts.team is not None
            parts.team.share(builder.last[:num_shared])

    def close(self) -> None:
        """Lets go of what the team must not outlive."""
        self._graphs = None


def spawn(settings: WorkerSettings, place: RankPlace) -> subprocess.Popen[bytes]:
    """A member as a child of this process, for an engine without a cluster."""
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.ranks.member", str(place.rank), str(place.size), place.meeting],
        stdin=subprocess.PIPE,
        # Whoever reads what this process says waits for nobody else.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    # They hold a key, so that they are on no command line.
    fields = asdict(settings) | {"hash_key": settings.hash_key.hex(), "show_progress": False}
    child.stdin.write(json.dumps(fields).encode())
    child.stdin.close()
    return child


def main() -> None:
    """The child process of `spawn`."""
    fields = json.loads(sys.stdin.buffer.read())
    fields["hash_key"] = bytes.fromhex(fields["hash_key"])
    rank, size, meeting = sys.argv[1:4]
    came_file(meeting, int(rank)).touch()
    run(WorkerSettings(**fields), RankPlace(int(rank), int(size), meeting))
    # All is said and done. What torch lets go of as an interpreter ends may wait for a rank that has gone before.
    os._exit(0)


def came_file(meeting: str, rank: int) -> Path:
    """Made beside the meeting place by a child that is about to come: until then its parent watches it, and does not
    wait where nothing can wake it."""
    return Path(f"{meeting.removeprefix('file://')}.{rank}")


if __name__ == "__main__":
    main()
