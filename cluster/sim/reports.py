"""What a simulated worker has to tell the scheduler, gathered until the next result goes out."""

from __future__ import annotations

from array import array

from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, GroupTables, Reason, Result, Revoked, Stopped, Transferred, ids
from cluster.sim.running import Running


class Report:
    """The content of the next result of a replica, before it is numbered."""

    def __init__(self) -> None:
        self.seqs = array("q")
        self.positions = ids()
        self.num_ids = ids()
        self.ids = ids()
        self.num_hashes = ids()
        self.hashes = bytearray()
        self.stopped: list[Stopped] = []
        self.revoked: list[Revoked] = []
        self.groups: list[GroupTables] = []
        self.transferred: list[Transferred] = []
        self.num_dry = 0

    def __bool__(self) -> bool:
        return bool(self.seqs or self.stopped or self.revoked or self.groups or self.transferred)

    def advance(self, running: Running) -> None:
        new, names = running.news()
        self.seqs.append(running.seq)
        self.positions.append(running.position)
        self.num_ids.append(len(new))
        self.ids.extend(new)
        self.num_hashes.append(len(names) // HASH_BYTES)
        self.hashes += names

    def stop(self, running: Running, reason: Reason) -> None:
        new, names = running.news()
        group = running.group
        if reason is Reason.DROPPED and group is not None and group.beams:
            position, tables, search = group.dump(running.num_prompt)
            self.stopped.append(Stopped(running.seq, reason, position, new, names, tables=tables, search=search))
            return
        self.stopped.append(Stopped(running.seq, reason, running.position, new, names))

    def result(
        self, sender: tuple[str, int, int], numbers: tuple[int, int, int], prefill_waiting: int, step_seconds: float
    ) -> Result:
        """`sender` is replica, incarnation, epoch; `numbers` this result, the last plan and the last retired step."""
        replica, incarnation, epoch = sender
        number, plan, step = numbers
        return Result(
            replica=replica,
            incarnation=incarnation,
            epoch=epoch,
            number=number,
            plan=plan,
            step=step,
            advances=Advances(self.seqs, self.positions, self.num_ids, self.ids, self.num_hashes, bytes(self.hashes)),
            stopped=tuple(self.stopped),
            revoked=tuple(self.revoked),
            groups=tuple(self.groups),
            transferred=tuple(self.transferred),
            dry=self.num_dry,
            prefill_waiting=prefill_waiting,
            step_seconds=step_seconds,
        )
