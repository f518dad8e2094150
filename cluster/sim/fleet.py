"""All replicas of a planned cluster as arrays [worker, batch row]: their steps, and what they tell the scheduler.

Every worker runs the real batcher, on its row of the same arrays. Steps of decodes alone, which are nearly all, are
taken for many workers at once, because there the batcher has nothing to choose; where a prompt is computed or the
token budget binds, the batcher is asked. Reports follow the rules of the worker (near the end of a lease, a filled
block of the prompt, an end). Orders are obeyed in cluster/sim/obeying.py. It has no clock and no scheduler.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cluster.desk.batcher import Batcher
from cluster.hashing import HASH_BYTES
from cluster.messages import Advances, Reason, Result, Revoked, Start, Stopped, Transferred
from cluster.sim.costs import Machine
from cluster.sim.gaps import Gaps
from cluster.sim.tokens import Tokens

NEVER = 2**31 - 1
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]


@dataclass(slots=True)
class News:
    """What a worker tells in its next result."""

    advances: Advances = field(default_factory=Advances)
    hashes: list[bytes] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)
    revoked: list[Revoked] = field(default_factory=list)
    transferred: list[Transferred] = field(default_factory=list)


class Fleet:
    """Workers of one shape. `launch` begins steps, `finish` ends them; times are the caller's."""

    def __init__(self, num_workers: int, max_batch: int, token_budget: int, machine: Machine, tokens: Tokens) -> None:
        self.machine = machine
        self.tokens = tokens
        self.num_workers, self.max_batch, self.token_budget = num_workers, max_batch, token_budget
        shape = (num_workers, max_batch)
        self.resident, self.paused = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        self.position, self.length = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.lease_end, self.limit = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.in_flight = np.zeros(shape, np.int32)
        self.seq = np.zeros(shape, np.int64)
        self.known, self.reported_known = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.reported = np.zeros(shape, np.int32)
        self.num_start, self.end = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.asked = np.full(shape, NEVER, np.int32)
        # When the last token came; less than 0: none yet, and the request was asked that long before time 0.
        self.asked_at, self.last_at = np.zeros(shape), np.full(shape, -1.0)
        self.in_step, self.samples = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        self.busy, self.step_end = np.zeros(num_workers, np.bool_), np.full(num_workers, np.inf)
        self.step_s, self.stolen_s = np.zeros(num_workers), np.zeros(num_workers)
        self.num_steps, self.num_dry = np.zeros(num_workers, np.int64), np.zeros(num_workers, np.int64)
        self.ahead = np.zeros(num_workers, np.int32)
        self.plan, self.num_results = np.zeros(num_workers, np.int64), np.zeros(num_workers, np.int64)
        self.batchers = [self._batcher(worker) for worker in range(num_workers)]
        self.starts: list[dict[int, Start]] = [{} for _ in range(num_workers)]  # by row
        self.reasons: list[dict[int, Reason]] = [{} for _ in range(num_workers)]
        self.row_of: list[dict[int, int]] = [{} for _ in range(num_workers)]
        self.free = [list(range(max_batch - 1, -1, -1)) for _ in range(num_workers)]
        self.news: dict[int, News] = {}
        self.gaps = Gaps()
        self.num_tokens = 0
        # Rows behind this one were never used: arrays are looked at up to here.
        self.used = 1
        self._order: dict[int, Int64] = {}  # rows of a step in the batcher's order, where a prompt is computed

    def _batcher(self, worker: int) -> Batcher:
        """The real batcher, on this worker's row of the fleet's arrays."""
        batcher = Batcher(self.max_batch, self.token_budget)
        batcher.resident, batcher.paused = self.resident[worker], self.paused[worker]
        batcher.position, batcher.length = self.position[worker], self.length[worker]
        batcher.lease_end, batcher.limit = self.lease_end[worker], self.limit[worker]
        batcher.in_flight = self.in_flight[worker]
        return batcher

    # -- steps

    def launch(self, workers: Int64, begins: Float64) -> None:
        """The next step of each of these idle workers; one that has nothing to run stands still."""
        used = self.used
        position = self.position[workers, :used]
        left = np.minimum(self.length[workers, :used], self.lease_end[workers, :used]) - position
        runs = self.resident[workers, :used] & ~self.paused[workers, :used]
        self.num_dry[workers] += (runs & (left <= 0)).sum(1)
        runs &= left > 0
        num_rows = runs.sum(1)
        prefills = runs & (self.length[workers, :used] - position > 1)
        is_mixed = prefills.any(1) | (num_rows > self.token_budget)
        is_plain = ~is_mixed & (num_rows > 0)
        if is_plain.any():
            chosen, rows = workers[is_plain], runs[is_plain]
            context = ((position[is_plain] + 1) * rows).sum(1)
            self.in_step[chosen, :used] = rows
            self.samples[chosen, :used] = rows
            self.position[chosen, :used] += rows
            self.length[chosen, :used] += rows
            tokens = num_rows[is_plain].astype(np.float64)
            self._begin(chosen, begins[is_plain], self.machine.cost.seconds(tokens, 0.0 * tokens, context))
        for at in np.flatnonzero(is_mixed).tolist():
            self._launch_mixed(int(workers[at]), float(begins[at]))

    def _launch_mixed(self, worker: int, begin: float) -> None:
        batcher = self.batchers[worker]
        batch = batcher.next()
        if not batch.num_tokens:
            return
        rows, first = batch.rows, batch.num_decodes
        starts, counts = batch.starts.astype(np.float64), batch.counts.astype(np.float64)
        context = float((starts[:first] + 1).sum())
        pairs = float((counts[first:] * (starts[first:] + counts[first:] / 2)).sum())
        sampled = batcher.issue(batch)
        self.in_step[worker] = False
        self.in_step[worker, rows] = True
        self.samples[worker] = False
        self.samples[worker, sampled] = True
        self._order[worker] = rows.astype(np.int64)
        one = np.array([worker])
        figures = (np.array([float(batch.num_tokens)]), np.array([pairs]), np.array([context]))
        self._begin(one, np.array([begin]), self.machine.cost.seconds(*figures))

    def _begin(self, workers: Int64, begins: Float64, seconds: Float64) -> None:
        seconds = seconds + self.stolen_s[workers]
        self.stolen_s[workers] = 0.0
        self.busy[workers] = True
        self.step_s[workers] = seconds
        self.step_end[workers] = begins + seconds

    def finish(self, workers: Int64) -> None:
        """The steps of these workers are over: tokens are known, some sequences end, some are to be reported."""
        used = self.used
        samples = self.samples[workers, :used]
        at = self.step_end[workers]
        self.busy[workers] = False
        self.step_end[workers] = np.inf
        self.num_steps[workers] += 1
        self.num_tokens += int(samples.sum())
        self._note_times(workers, samples, at)
        known = self.known[workers, :used] + samples
        self.known[workers, :used] = known
        ended = samples & (known >= self.end[workers, :used])
        report = self._to_report(workers, ended)
        for index in np.flatnonzero((ended | report).any(1)).tolist():
            worker = int(workers[index])
            order = self._order.get(worker)
            rows = np.flatnonzero(ended[index])
            for row in (rows if order is None else order[ended[index, order]]).tolist():
                self.move_out(worker, row, self.reasons[worker][row])
            rows = np.flatnonzero(report[index])
            if len(rows):
                self.advance(worker, rows if order is None else order[report[index, order]])
        if self._order:
            for worker in workers.tolist():
                self._order.pop(worker, None)

    def _note_times(self, workers: Int64, samples: NDArray[np.bool_], at: Float64) -> None:
        which, rows = np.nonzero(samples)
        owners, when = workers[which], at[which]
        last = self.last_at[owners, rows]
        is_first = last < 0
        self.gaps.between.add(when[~is_first] - last[~is_first])
        if is_first.any():
            self.gaps.first.add(when[is_first] - self.asked_at[owners[is_first], rows[is_first]])
        self.last_at[owners, rows] = when

    def _to_report(self, workers: Int64, ended: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Once when a lease comes near its end, once more where a row stands still, and for blocks of the prompt."""
        used, size = self.used, self.machine.block_size
        position, lease_end = self.position[workers, :used], self.lease_end[workers, :used]
        asked = self.asked[workers, :used]
        ran = self.in_step[workers, :used] & ~ended
        left = lease_end - position
        near = ran & (left <= self.ahead[workers, None]) & (lease_end < self.limit[workers, :used])
        near &= (asked == NEVER) | ((left == 0) & (asked > 0))
        if near.any():
            self.asked[workers, :used] = np.where(near, left, asked)
        in_prompt = ran & (position <= self.num_start[workers, :used])
        if not in_prompt.any():
            return near
        return near | (in_prompt & (position // size > self.reported[workers, :used] // size))

    # -- what is told

    def tell(self, worker: int) -> News:
        news = self.news.get(worker)
        if news is None:
            news = self.news[worker] = News()
        return news

    def _names(self, start: Start, reported: int, position: int) -> bytes:
        """Names of the blocks behind the prompt's that were filled since `reported`."""
        size = self.machine.block_size
        first, end = max(reported, start.num_prompt) // size, position // size
        return self.tokens.names(start, first, end) if end > first else b""

    def advance(self, worker: int, rows: Int64) -> None:
        news = self.tell(worker)
        advances = news.advances
        positions = self.position[worker, rows]
        known = self.known[worker, rows]
        new = known - self.reported_known[worker, rows]
        advances.seqs.frombytes(self.seq[worker, rows].tobytes())
        advances.positions.frombytes(positions.tobytes())
        advances.num_ids.frombytes(new.tobytes())
        for row, position, last, count in zip(
            rows.tolist(), positions.tolist(), known.tolist(), new.tolist(), strict=True
        ):
            start = self.starts[worker][row]
            if count:
                advances.ids.extend(self.tokens.ids(start, last - count, last))
            names = self._names(start, int(self.reported[worker, row]), position)
            advances.num_hashes.append(len(names) // HASH_BYTES)
            news.hashes.append(names)
        self.reported[worker, rows] = positions
        self.reported_known[worker, rows] = known

    def move_out(self, worker: int, row: int, reason: Reason) -> None:
        """An attempt ends here."""
        start = self.starts[worker].pop(row)
        known = int(self.known[worker, row])
        position = min(int(self.position[worker, row]), known)
        ids = self.tokens.ids(start, int(self.reported_known[worker, row]), known)
        names = self._names(start, int(self.reported[worker, row]), position)
        self.tell(worker).stopped.append(Stopped(int(self.seq[worker, row]), reason, position, ids, names))
        self.batchers[worker].remove(row)
        self.in_step[worker, row] = self.samples[worker, row] = False
        del self.row_of[worker][start.seq], self.reasons[worker][row]
        self.free[worker].append(row)

    def take_result(self, worker: int, name: str, epoch: int) -> Result | None:
        """All news of a worker as one numbered Result; None if there are none."""
        news = self.news.pop(worker, None)
        if news is None:
            return None
        self.num_results[worker] += 1
        used = self.used
        waiting = self.length[worker, :used] - self.position[worker, :used] - 1
        waiting = waiting[self.resident[worker, :used] & (waiting > 0)]
        return Result(
            replica=name,
            incarnation=1,
            epoch=epoch,
            number=int(self.num_results[worker]),
            plan=int(self.plan[worker]),
            step=int(self.num_steps[worker]),
            advances=replace(news.advances, hashes=b"".join(news.hashes)) if news.advances.seqs else Advances(),
            stopped=tuple(news.stopped),
            revoked=tuple(news.revoked),
            transferred=tuple(news.transferred),
            prefill_waiting=int(waiting.sum()) if len(waiting) else 0,
            step_seconds=float(self.step_s[worker]),
        )
