"""What the scheduler orders when requests move, prefixes are fetched and caches are written behind, turn by turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from cluster.centre.nouns import State
from cluster.centre.scheduler import Scheduler
from cluster.messages import (
    Advances,
    Cancel,
    Drain,
    HostPoolJoined,
    HostPoolLost,
    Order,
    Plan,
    Reason,
    ReplicaJoined,
    ReplicaLost,
    Result,
    Road,
    Sealed,
    Start,
    Stopped,
    Transfer,
    Transferred,
    ids,
)
from cluster.settings import SchedulerSettings
from cluster.sim.bills import Bills
from tests.cluster.test_scheduler import SIZE, joined, names_of, starts, submit

PROMPT = range(100, 100 + 5 * SIZE)


def plans(orders: Sequence[Order]) -> dict[str, Plan]:
    return {order.replica: order for order in orders if isinstance(order, Plan)}


class Two:
    """A scheduler and two replicas of one model that are told what to say."""

    def __init__(self, prefill_tokens_per_s: float = 100.0, **replica: int) -> None:
        """A last read is quicker than to write three tokens again at 100 tokens/s, and not at 1,000."""
        self.scheduler = Scheduler(SchedulerSettings(balance_gap=2.0))
        self.prefill_tokens_per_s = prefill_tokens_per_s
        self.bills = Bills()
        self.now = 0.0
        self.numbers = {"r0": 0, "r1": 0}
        self.plans = {"r0": 0, "r1": 0}
        for name in self.numbers:
            self.turn(self.joined(name, **replica))

    def joined(self, name: str, **replica: int) -> ReplicaJoined:
        about = joined(name, **replica)  # type: ignore[arg-type]
        return replace(about, bytes_per_s=1e9, prefill_tokens_per_s=self.prefill_tokens_per_s)

    def turn(self, *events: object) -> dict[str, Plan]:
        self.now += 0.01
        found = plans(self.scheduler.turn(list(events), self.now))  # type: ignore[arg-type]
        for name, plan in found.items():
            self.plans[name] = plan.number
        self.scheduler.check()
        self.bills.look(self.scheduler)
        return found

    def tell(
        self,
        name: str,
        transferred: tuple[Transferred, ...] = (),
        stopped: tuple[Stopped, ...] = (),
        advances: Advances | None = None,
    ) -> dict[str, Plan]:
        self.numbers[name] += 1
        number = self.numbers[name]
        result = Result(
            name, 1, 1, number, self.plans[name], number, advances or Advances(), stopped, transferred=transferred,
            step_seconds=0.01,
        )  # fmt: skip
        return self.turn(result)

    def start(self, name: str = "q", *, on: str = "r0", max_tokens: int = 100) -> Start:
        """A request of five full blocks that has drawn two tokens there."""
        self.turn(Drain("r1" if on == "r0" else "r0"))
        begun = starts(list(self.turn(submit(name, PROMPT, max_tokens)).values()))[name]
        self.turn(Drain("r1" if on == "r0" else "r0", on=False))
        length = len(PROMPT) + 1
        self.tell(on, advances=Advances(*columns(begun.seq, length, 2)))
        return begun

    def stop(self, name: str, begun: Start, position: int, num_ids: int) -> dict[str, Plan]:
        told = Stopped(
            begun.seq, Reason.DROPPED, position, ids([7] * num_ids), names_of(begun, range(position // SIZE))
        )
        return self.tell(name, stopped=(told,))

    def done(self, name: str, transfer: Transfer, ok: bool = True) -> dict[str, Plan]:
        return self.tell(name, transferred=(Transferred(transfer.transfer, ok, "", 4096, 0.001),))


def columns(seq: int, position: int, num_ids: int) -> tuple[object, ...]:
    from array import array

    return array("q", [seq]), ids([position]), ids([num_ids]), ids([7] * num_ids), ids([0]), b""


def test_a_drained_request_is_copied_while_it_runs_and_stands_still_for_the_rest_only() -> None:
    two = Two()
    begun = two.start()
    orders = two.turn(Drain("r0"))
    (copies,) = orders["r1"].transfers
    assert (copies.road, copies.peer, list(copies.theirs)) == (Road.READ, "r0", list(begun.table[:5]))
    assert "r0" not in orders or not orders["r0"].drops, "it runs on while its full blocks are read"
    orders = two.done("r1", copies)
    assert [drop.seq for drop in orders["r0"].drops] == [begun.seq]
    orders = two.stop("r0", begun, len(PROMPT) + 3, 2)
    (rest,), (again,) = orders["r1"].transfers, orders["r1"].starts
    assert list(rest.theirs) == [begun.table[5]], "only the part-filled block is left"
    assert (again.after, again.position, len(again.tokens)) == (rest.transfer, len(PROMPT) + 3, len(PROMPT) + 4)
    assert list(again.table[:5]) == list(copies.mine) and list(again.table[5:6]) == list(rest.mine)
    assert two.scheduler.replicas["r0"].ledger.counts().moving == 6, "the source is whole until the read has ended"
    two.done("r1", rest)
    request = two.scheduler.requests["q"]
    assert request.state is State.RUNNING and request.replica is two.scheduler.replicas["r1"]
    counts = two.scheduler.replicas["r0"].ledger.counts()
    assert counts.held == counts.moving == 0
    assert two.scheduler.counters["moved"] == 1 and len(two.scheduler.pauses.last) == 1


def test_where_little_is_left_the_target_writes_it_again_and_nothing_is_read() -> None:
    two = Two(prefill_tokens_per_s=1000.0)
    begun = two.start()
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    two.done("r1", copies)
    orders = two.stop("r0", begun, len(PROMPT) + 3, 2)
    assert not orders["r1"].transfers
    (again,) = orders["r1"].starts
    assert (again.after, again.position, len(again.tokens)) == (0, len(PROMPT), len(PROMPT) + 4)
    assert list(again.table[:5]) == list(copies.mine) and again.table[5] not in copies.mine
    counts = two.scheduler.replicas["r0"].ledger.counts()
    assert counts.held == counts.moving == 0, "the source is free of it at once"
    assert two.scheduler.requests["q"].state is State.RUNNING
    pauses = two.scheduler.pauses
    assert not pauses.last, "its target has not told that it obeys"
    two.turn()
    two.tell("r1")
    # Two turns of 0.01 s, which is a step: the one that it takes now is not counted.
    assert [round(steps, 6) for steps in pauses.last] == [2.0] and sum(pauses.counts) == 1


@pytest.mark.parametrize("rate", [100.0, 1000.0])
def test_who_moves_pays_for_what_its_tables_hold_and_not_for_what_is_copied_meanwhile(rate: float) -> None:
    two = Two(prefill_tokens_per_s=rate)
    begun = two.start()
    request, begun_at = two.scheduler.requests["q"], two.now - 0.02
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    two.now += 5.0
    two.done("r1", copies)
    held = len(request.sequences[0].table) * (two.now + 0.01 - begun_at)
    orders = two.stop("r0", begun, len(PROMPT) + 3, 2)
    assert request.block_seconds == pytest.approx(held)
    stopped_at = two.now
    for rest in orders["r1"].transfers:
        two.done("r1", rest)
    two.now += 1.0
    two.turn(Cancel("q"))
    (sequence,) = request.sequences
    held += len(sequence.table) * (two.now + 0.01 - stopped_at)
    two.tell("r1", stopped=(Stopped(sequence.seq, Reason.DROPPED, len(PROMPT), ids(), b""),))
    assert request.state is State.ENDED and request.block_seconds == pytest.approx(held)


def test_a_last_read_that_fails_ends_in_computing_again() -> None:
    two = Two()
    begun = two.start()
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    two.done("r1", copies)
    (rest,) = two.stop("r0", begun, len(PROMPT) + 3, 2)["r1"].transfers
    again = starts(list(two.done("r1", rest, ok=False).values()))["q"]
    assert again.after == 0 and again.position <= len(PROMPT) and len(again.tokens) == len(PROMPT) + 4
    two.turn(Drain("r0", on=False))


def test_a_target_that_is_lost_leaves_the_request_where_it_runs() -> None:
    two = Two()
    begun = two.start()
    two.turn(Drain("r0"))
    two.turn(ReplicaLost("r1", 1))
    request = two.scheduler.requests["q"]
    # Nobody else is there: what cannot be moved is taken off as ever.
    assert request.state is State.STOPPING and request.sequences[0].seq == begun.seq
    assert not two.scheduler.transfers and not two.scheduler.movable.by_request


def test_a_target_that_is_lost_between_the_stops_of_two_sequences_leaves_both_to_start_again() -> None:
    two = Two()
    two.turn(Drain("r1"))
    begun = starts(list(two.turn(submit("q", PROMPT, 100, n=2)).values()))["q"]
    two.turn(Drain("r1", on=False))
    (fork,) = begun.forks
    other = replace(begun, seq=fork.seq, table=fork.table)
    two.tell("r0", advances=Advances(*columns(begun.seq, len(PROMPT) + 1, 2)))
    two.tell("r0", advances=Advances(*columns(other.seq, len(PROMPT) + 1, 2)))
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    assert {drop.seq for drop in two.done("r1", copies)["r0"].drops} == {begun.seq, other.seq}
    two.stop("r0", begun, len(PROMPT) + 2, 1)
    two.turn(ReplicaLost("r1", 1))
    two.stop("r0", other, len(PROMPT) + 2, 1)
    request = two.scheduler.requests["q"]
    assert request.state is State.QUEUED and not two.scheduler.replicas["r0"].residents
    again = starts(list(two.turn(Drain("r0", on=False)).values()))["q"]
    assert len(again.tokens) == len(PROMPT) + 3 and len(again.forks) == 1


def test_what_a_lost_target_still_reads_stays_until_its_gateway_is_deaf() -> None:
    two = Two()
    begun = two.start()
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    two.done("r1", copies)
    (rest,) = two.stop("r0", begun, len(PROMPT) + 3, 2)["r1"].transfers
    request = two.scheduler.requests["q"]
    two.turn(ReplicaLost("r1", 1))
    source = two.scheduler.replicas["r0"].ledger
    # It may wake up, read, and go on with what it has read.
    assert request.state is State.SEALING and source.counts().moving == 6, rest
    two.turn(Sealed("q", request.gateway, request.route, request.attempt, (ids([7] * 4),), (Reason.NONE,)))
    assert source.counts().moving == 0


def test_a_source_that_is_lost_after_the_stop_leaves_the_last_read_to_itself() -> None:
    two = Two()
    begun = two.start()
    (copies,) = two.turn(Drain("r0"))["r1"].transfers
    two.done("r1", copies)
    (rest,) = two.stop("r0", begun, len(PROMPT) + 3, 2)["r1"].transfers
    two.turn(ReplicaLost("r0", 1))
    two.done("r1", rest)
    assert two.scheduler.requests["q"].state is State.RUNNING


def test_a_prefix_that_another_replica_has_is_fetched_where_that_is_cheaper() -> None:
    two = Two()
    two.start()
    two.turn(Drain("r0"), Drain("r1", on=False))
    found = two.turn(submit("other", [*PROMPT, 9, 9], 4))
    (other,) = [start for plan in found.values() for start in plan.starts if start.request_id == "other"]
    (fetched,) = [one for plan in found.values() for one in plan.transfers if one.transfer == other.after]
    assert (fetched.road, fetched.peer, len(fetched.theirs)) == (Road.READ, "r0", 5)
    assert other.position == len(PROMPT)
    two.done("r1", fetched)
    assert two.scheduler.requests["other"].state is State.RUNNING


def fetching(num: int, **replica: int) -> tuple[Two, dict[str, Plan]]:
    """So many requests are asked at once for r1, whose prompt is cached on r0 only."""
    two = Two(num_blocks=4096, max_batch=300, **replica)
    begun = two.start(max_tokens=8)
    two.tell("r0", stopped=(Stopped(begun.seq, Reason.STOP, len(PROMPT) + 2, ids([7]), b""),))
    two.turn(Drain("r0"), Drain("r1", on=False))
    return two, two.turn(*[submit(f"other{number}", [*PROMPT, 9, number], 4) for number in range(num)])


def test_as_many_as_a_batch_holds_wait_for_one_fetch() -> None:
    two, found = fetching(300)
    (fetched,) = found["r1"].transfers
    assert [start.request_id for start in found["r1"].starts] == ["other0"]
    assert two.scheduler.admission.why_waiting(two.scheduler.requests["other299"]) == "other0 fetches its prefix"
    found = two.done("r1", fetched)
    assert len(found["r1"].starts) == 299 and not found["r1"].transfers
    assert {start.position for start in found["r1"].starts} == {len(PROMPT)}
    first = two.scheduler.requests["other0"].sequences[0].table[: len(PROMPT) // SIZE]
    assert all(start.table[: len(first)] == first for start in found["r1"].starts)
    assert two.scheduler.replicas["r0"].ledger.counts().moving == 0


def test_who_waited_for_a_fetch_that_failed_fetches_no_more() -> None:
    two, found = fetching(20)
    (fetched,) = found["r1"].transfers
    found = two.tell("r1", (Transferred(fetched.transfer, False, "its peer was silent", 0, 9.0),))
    # One of them computes the prompt, and the others wait for that.
    assert len(found["r1"].starts) == 1 and not found["r1"].transfers
    assert two.scheduler.counters["fetches begun"] == 1


def test_who_waited_for_a_fetch_that_nobody_wants_any_more_fetches_itself() -> None:
    two, found = fetching(20)
    (fetched,) = found["r1"].transfers
    found = two.turn(Cancel("other0"))
    assert list(found["r1"].aborts) == [fetched.transfer] and not found["r1"].starts
    found = two.tell("r1", (Transferred(fetched.transfer, False, "aborted", 0, 0.01),))
    assert len(found["r1"].starts) == len(found["r1"].transfers) == 1


def test_who_waited_for_a_fetch_looks_elsewhere_when_its_replica_is_lost() -> None:
    two, found = fetching(20)
    assert len(found["r1"].transfers) == 1
    found = two.turn(ReplicaLost("r1", 1, "its process died"), Drain("r0", on=False))
    assert len(found["r0"].starts) == 19 and not found["r0"].transfers


def test_numbers_of_pools_that_are_gone_are_used_again() -> None:
    """Masks of the prefix index have a bit for each number."""
    two = Two()
    for incarnation in range(1, 100):
        two.turn(HostPoolJoined("h0", incarnation, "node", 32, 4096, "f", 1e9))
        two.turn(replace(two.joined("r1"), incarnation=incarnation + 1))
        two.turn(ReplicaLost("r1", incarnation + 1, "its process died"))
        two.turn(HostPoolLost("h0", incarnation, "its process died"))
    two.turn(HostPoolJoined("h0", 100, "node", 32, 4096, "f", 1e9), replace(two.joined("r1"), incarnation=200))
    members = [*two.scheduler.replicas.values(), *two.scheduler.pools.values()]
    assert sorted(member.ledger.pool for member in members) == [1, 2, 3]


def cached_and_written() -> tuple[Two, Transfer]:
    """Two replicas of 6 blocks; a prompt of five has ended on the first, and its cache is being written behind."""
    two = Two(num_blocks=6)
    two.turn(HostPoolJoined("h0", 1, "node", 32, 4096, "f", 1e9))
    begun = two.start(max_tokens=8)
    told = Stopped(begun.seq, Reason.STOP, len(PROMPT) + 2, ids([7]), b"")
    two.tell("r0", stopped=(told,))
    two.now += 1.0
    found = two.turn(Drain("r0", on=False))
    (write,) = [one for plan in found.values() for one in plan.transfers]
    return two, write


def test_what_falls_out_next_is_written_behind_and_listed_once_it_has_come() -> None:
    two, write = cached_and_written()
    assert (write.road, write.peer, len(write.mine)) == (Road.WRITE, "h0", 5)
    two.done("r0", write)
    host = two.scheduler.pools["h0"].ledger
    assert host.counts().cached == 5 and two.scheduler.replicas["r0"].ledger.counts().cached == 5
    # Room for swaps is where caches are: they give way.
    assert host.num_available == 32


def test_what_was_given_up_while_it_was_copied_is_not_listed() -> None:
    two, write = cached_and_written()
    two.turn(Drain("r1"))
    two.turn(submit("big", range(1000, 1000 + 5 * SIZE), 8))
    two.done("r0", write)
    host = two.scheduler.pools["h0"].ledger
    assert host.counts().cached < 5 and not host.counts().held


def test_one_write_is_under_way_at_a_time_though_all_that_it_copies_was_used_anew() -> None:
    """A second write watched the same blocks under other names, and the first listed its own names for what it had
    copied while they were written."""
    two, write = cached_and_written()
    two.turn(Drain("r1"))
    big = ids(range(1000, 1000 + 5 * SIZE))
    (start,) = [start for plan in two.turn(submit("big", big, 8)).values() for start in plan.starts]
    assert set(write.mine) <= set(start.table), "every block that is being copied is used anew"
    two.tell("r0", stopped=(Stopped(start.seq, Reason.STOP, len(big) + 2, ids([7]), b""),))
    two.now += 1.0
    orders = two.turn(Drain("r0", on=False))
    assert not [one for plan in orders.values() for one in plan.transfers]
    two.done("r0", write)
    assert not two.scheduler.pools["h0"].ledger.counts().cached


def test_what_was_copied_is_not_copied_again_where_more_is_cached_than_host_memory_holds() -> None:
    """Each of two replicas keeps five blocks, and there is room for seven: every copy gives up another."""
    two = Two(num_blocks=6)
    two.turn(HostPoolJoined("h0", 1, "node", 7, 4096, "f", 1e9))
    writes: list[tuple[str, Transfer]] = []

    def note(found: dict[str, Plan]) -> dict[str, Plan]:
        writes.extend((name, one) for name, plan in found.items() for one in plan.transfers)
        return found

    for name, other, first in (("r0", "r1", 1000), ("r1", "r0", 2000)):
        note(two.turn(Drain(other)))
        (start,) = starts(list(note(two.turn(submit(name, range(first, first + 5 * SIZE), 8))).values())).values()
        note(two.turn(Drain(other, on=False)))
        told = Stopped(start.seq, Reason.STOP, 5 * SIZE + 2, ids([7, 7, 7]), b"")
        note(two.tell(name, stopped=(told,)))
    num_copied = 0
    for _ in range(20):
        two.now += 1.0
        note(two.tell("r0") | two.tell("r1"))
        while writes:
            name, write = writes.pop(0)
            num_copied += len(write.mine)
            note(two.done(name, write))
    assert num_copied == 10
    assert two.scheduler.pools["h0"].ledger.counts().cached == 7
