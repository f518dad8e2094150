"""Any rank but the first of a tensor-parallel replica: does to its slice what rank 0 says, step by step.

`run` is what starts one; it returns when rank 0 ends the replica and raises when rank 0 is gone. A member knows no
sequences, samples nothing and talks to nobody else.

How a cluster starts one: for each replica of K ranks, K actors in one placement group (one accelerator each, on one
machine). All get the same `WorkerSettings` and a `Place(rank, K, meeting)` with a meeting place that is new for every
start of the replica, such as file:///tmp/quire-REPLICA-INCARNATION. Rank 0 makes
`Worker(settings, place=place)` and serves it as ever; every other rank calls `member.run(settings, place)` on a thread
and ends its process when that returns or raises. All K must start within ten minutes of each other, and when one of
them has died all others must be started again too: rank 0 raises at its next step. A tensor-parallel replica has no
transfers (`WorkerServer` makes no `Swap` for one) and needs no host pool: what it preempts is computed again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cluster.settings import WorkerSettings
from kernels.batch import AttentionBatch
from kernels.device.seam import device_of
from worker.model.startup import Started, start
from worker.ranks.team import CLEAR, COPY, END, STEP, Place, Words


def run(settings: WorkerSettings, place: Place) -> None:
    """Loads this rank's slice and obeys rank 0 until it ends the replica."""
    parts = start(settings, lambda line: None, place)
    team = parts.team
    assert team is not None and not team.leads
    tables = Tables(settings, parts)
    # The tokens that rank 0 sampled last, where it issues steps before it knows them.
    shared = torch.zeros(0, dtype=torch.int64, device=parts.device)
    while True:
        kind, words = team.hear()
        if kind == END:
            break
        if kind == STEP:
            tables.extend(words[0], words[1])
            shared = _step(parts, tables.tensor, words[2:], shared)
        elif kind == COPY:
            parts.backend.copy_blocks(parts.pool.bytes, words[0].tolist(), words[1].tolist())
        elif kind == CLEAR:
            parts.pool.clear(words[0].tolist())
    team.close()


class Tables:
    """The block tables of all batch rows, as rank 0 has them."""

    def __init__(self, settings: WorkerSettings, parts: Started) -> None:
        shape = settings.max_batch, -(-parts.max_model_len // settings.block_size)
        self._seam = device_of(parts.device)
        self.tensor = torch.zeros(shape, dtype=torch.int32, device=parts.device)

    def extend(self, places: Words, blocks: Words) -> None:
        """Places in the flat tables, and the blocks that stand there from now on."""
        if len(places):
            new = self._seam.send(blocks.astype(np.int32))
            self.tensor.view(-1).index_copy_(0, self._seam.send(places.copy()), new)


def _step(parts: Started, tables: torch.Tensor, words: list[Words], shared: torch.Tensor) -> torch.Tensor:
    """One forward pass. The words are those of `worker.ranks.lead.Lead.step`, behind the tables. Returns the
    tokens that rank 0 samples in it, if it shares them."""
    ids, positions, slots, logit_rows, context_len, query_start, rows, more_logits, targets, sources, sizes = words
    team = parts.team
    assert team is not None

    def tensor(part: Words, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return device_of(parts.device).send(part.astype(str(dtype).removeprefix("torch.")))

    where = tensor(positions)
    batch = AttentionBatch(
        query_start=tensor(query_start, torch.int32),
        context_len=tensor(context_len, torch.int32),
        tables=tables,
        rows=tensor(rows, torch.int32),
        slots=tensor(slots),
        positions=where,
        max_query_len=int(sizes[0]),
        max_context_len=int(sizes[1]),
        num_decodes=int(sizes[2]),
    )
    parts.model.prepare(batch)
    known = tensor(ids)
    if len(targets):
        known.index_copy_(0, tensor(targets), shared.index_select(0, tensor(sources)))
    parts.model.forward(known, where, tensor(np.concatenate([logit_rows, more_logits])))
    if sizes[3]:
        shared = torch.empty(int(sizes[3]), dtype=torch.int64, device=parts.device)
        team.share(shared)
    return shared


def spawn(settings: WorkerSettings, place: Place) -> subprocess.Popen[bytes]:
    """A member as a child of this process, for an engine without a cluster."""
    child = subprocess.Popen(
        [sys.executable, "-m", "worker.ranks.member", str(place.rank), str(place.size), place.meeting],
        stdin=subprocess.PIPE,
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
    run(WorkerSettings(**fields), Place(int(rank), int(size), meeting))


def came_file(meeting: str, rank: int) -> Path:
    """Made beside the meeting place by a child that is about to come: until then its parent watches it, and does not
    wait where nothing can wake it."""
    return Path(f"{meeting.removeprefix('file://')}.{rank}")


if __name__ == "__main__":
    main()
