"""What a worker holds, told whole to a scheduler that knows nothing: residents, their tables and how far they are.

Called once per new scheduler by the step loop. The state counts as a report, so later Advances tell what came after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.messages import ReplicaState, Resident, ids

if TYPE_CHECKING:
    from worker.worker import Worker


def holdings(worker: Worker) -> ReplicaState:
    """All residents as of the last retired step; marks them as reported."""
    state, batcher = worker.state, worker.batcher
    residents = []
    for row in batcher.resident.nonzero()[0].tolist():
        resident = state.at(row)
        group = worker.beams.groups.get(row)
        table = ids(state.tables[row, : int(state.num_blocks[row])].tolist())
        position = max(min(int(batcher.position[row]), int(state.known[row])), int(state.write_from[row]))
        residents.append(
            Resident(
                seq=resident.seq,
                index=resident.index,
                start=resident.start,
                tokens=state.ids(row, 0, int(state.known[row])),
                position=position,
                table=table if group is None else worker.beams.held(group),
                lease_end=int(batcher.lease_end[row]),
            )
        )
        state.reported[row] = position
        state.reported_known[row] = int(state.known[row])
    return ReplicaState(worker.joined(), tuple(residents), (), tuple(worker.transfers_under_way.values()))
