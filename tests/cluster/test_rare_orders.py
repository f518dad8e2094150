"""Words in orders that take two deaths and bad luck: what a reader found who looked for them, one test each."""

from __future__ import annotations

from dataclasses import replace

from cluster.centre.nouns import State
from cluster.centre.scheduler import Scheduler
from cluster.gateway.door.door import Door
from cluster.gateway.door.kept import DoorSettings
from cluster.messages import (
    Accepted,
    Adopt,
    Event,
    GatewayLost,
    GatewayState,
    OpenRequest,
    Order,
    Plan,
    Reason,
    Refused,
    Replay,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Resident,
    Result,
    Seal,
    Sealed,
    StopAt,
    Stopped,
    Submit,
    Transferred,
    ids,
)
from cluster.messages.resume import REPLACED
from cluster.settings import SchedulerSettings
from tests.cluster.test_scheduler import joined, starts, submit, transfers_of

A, B = b"A" * 16, b"B" * 16
ASKED = replace(submit("t/q", range(40), 30), gateway="a", route=1, digest=A)


class Told:
    """A scheduler, and the time."""

    def __init__(self, epoch: int = 1) -> None:
        self.scheduler, self.now = Scheduler(SchedulerSettings(), epoch), 0.0

    def turn(self, *events: Event, after_s: float = 0.01) -> list[Order]:
        self.now += after_s
        orders = self.scheduler.turn(list(events), self.now)
        self.scheduler.check()
        return orders


def open_at(gateway: str, asked: Submit, *tokens: int) -> GatewayState:
    return GatewayState(gateway, (OpenRequest(asked, 1, (ids(tokens),), (Reason.NONE,)),))


def sealed(seal: Seal, *tokens: int, reason: Reason = Reason.NONE) -> Sealed:
    return Sealed("t/q", seal.gateway, seal.route, seal.attempt, (ids(tokens),), (reason,))


def seals(orders: list[Order]) -> list[Seal]:
    return [order for order in orders if isinstance(order, Seal)]


def test_a_stop_string_in_tokens_that_only_its_gateway_has_ends_the_answer_behind_them() -> None:
    """The end was taken at once, and what the seal's answer brought was thrown away."""
    told = Told()
    told.turn(replace(joined(), digest=A), ASKED)
    (seal,) = seals(told.turn(ReplicaLost("r0", 1)))
    told.turn(StopAt("t/q", 0, 5), sealed(seal, 1, 2, 3, 4, 5, reason=Reason.STOP))
    request = told.scheduler.unclosed["t/q"]
    assert (list(request.sequences[0].outputs), request.sequences[0].reason) == ([1, 2, 3, 4, 5], Reason.STOP)


def test_other_weights_do_not_go_on_behind_what_a_gateway_that_was_given_up_tells() -> None:
    """Its client came back at b from the beginning, where it was told of the weights that there are now."""
    for is_first in (True, False):
        told = Told(epoch=2)
        mine = replace(ASKED, gateway="b", route=9, digest=B)
        of_b = GatewayState("b", (OpenRequest(mine, 2, (ids(),), (Reason.NONE,), turn=1 << 20),))
        states = [open_at("a", ASKED, 5, 5, 5, 5, 5), of_b]
        told.turn(ReplicaState(replace(joined("r1"), digest=B), (), (), ()), *(states if is_first else states[::-1]))
        told.turn(Sealed("t/q", "a", 1, 0, (ids([5] * 5),), (Reason.NONE,)))
        (seal,) = seals(told.turn(after_s=3.0))
        assert (seal.gateway, seal.digest) == ("b", B)
        assert len(starts(told.turn(sealed(seal)))["t/q"].tokens) == 40


def test_what_a_gateway_that_comes_back_had_of_other_weights_does_not_count() -> None:
    told = Told()
    told.turn(replace(joined(), digest=A), ASKED)
    told.turn(GatewayLost("a"))
    told.turn(Adopt(replace(ASKED, gateway="b", route=9)))
    (seal,) = seals(told.turn(ReplicaLost("r0", 1), replace(joined("r1"), digest=B)))
    (seal,) = seals(told.turn(sealed(seal)))
    told.turn(sealed(seal))
    told.turn(open_at("a", ASKED, 5, 5, 5, 5, 5))
    (seal,) = seals(told.turn(ReplicaLost("r1", 1), replace(joined("r2"), digest=B)))
    assert list(starts(told.turn(sealed(seal, 7, 7, 7)))["t/q"].tokens[40:]) == [7, 7, 7]


def test_a_gateway_that_died_before_this_scheduler_could_meet_it_is_not_waited_for() -> None:
    """Nobody says that it is lost: it was never here."""
    first = Told()
    here = replace(joined(), digest=A)
    start = starts(first.turn(here, ASKED))["t/q"]
    told = Told(epoch=2)
    held = Resident(start.seq, 0, start, ids([*range(40), 7, 7, 7, 7]), 43, start.table, start.lease_end)
    told.turn(ReplicaState(here, (held,), (), ()))
    told.turn(Adopt(replace(ASKED, gateway="b", route=9)))
    told.turn(after_s=3.0)
    found = seals(told.turn(ReplicaLost("r0", 1), replace(here, replica="r1")))
    of_b = next(one for one in found if one.gateway == "b")
    told.turn(sealed(of_b, 7, 7, 7, 7))
    for _ in range(60):
        told.turn(after_s=1.0)
    assert told.scheduler.requests["t/q"].state is State.RUNNING


def test_what_the_last_scheduler_had_accepted_of_a_model_that_does_not_come_back_is_refused() -> None:
    told = Told(epoch=2)
    told.turn(open_at("a", ASKED))
    (seal,) = seals(told.turn(after_s=2.1))
    told.turn(sealed(seal))
    assert not [order for order in told.turn(after_s=20.0) if isinstance(order, Refused)]
    assert told.scheduler.next_deadline is not None and told.scheduler.next_deadline < 33.0
    (refused,) = [order for order in told.turn(after_s=10.0) if isinstance(order, Refused)]
    assert refused.code == "NOT_FOUND" and not told.scheduler.requests


def test_a_stop_string_that_is_heard_before_its_replica_ends_the_answer_there() -> None:
    """A new scheduler asked nobody about it, and the replica drew on to its last token."""
    first, here = Told(), replace(joined(), digest=A)
    start = starts(first.turn(here, ASKED))["t/q"]
    told = Told(epoch=2)
    told.turn(open_at("a", ASKED, 7, 7, 7))
    told.turn(StopAt("t/q", 0, 5))
    held = Resident(start.seq, 0, start, ids([*range(40), *[7] * 6]), 45, start.table, start.lease_end)
    orders = told.turn(ReplicaState(here, (held,), (), ()))
    assert [drop.seq for order in orders if isinstance(order, Plan) for drop in order.drops] == [start.seq]
    last = told.scheduler.replicas["r0"].last_plan
    told.turn(Result("r0", 1, 2, 1, last, 1, stopped=(Stopped(start.seq, Reason.DROPPED, 45, ids()),)))
    sequence = told.scheduler.unclosed["t/q"].sequences[0]
    assert (sequence.reason, sequence.num_billed) == (Reason.STOP, 5)


def test_what_a_gateway_had_of_an_attempt_before_does_not_count_behind_the_next() -> None:
    """It was cut off, not dead; another replica may draw other tokens."""
    told = Told()
    told.turn(replace(joined(), digest=A), ASKED)
    told.turn(GatewayLost("a"))
    told.turn(Adopt(replace(ASKED, gateway="b", route=9)))
    (seal,) = seals(told.turn(ReplicaLost("r0", 1), replace(joined("r1"), digest=A)))
    told.turn(sealed(seal))
    told.turn(open_at("a", ASKED, 5, 5, 5, 5, 5))
    (seal,) = seals(told.turn(ReplicaLost("r1", 1), replace(joined("r2"), digest=A)))
    assert list(starts(told.turn(sealed(seal, 7, 7, 7)))["t/q"].tokens[40:]) == [7, 7, 7]


def test_a_client_with_tokens_of_other_weights_is_refused_also_behind_the_seal() -> None:
    """Back before the seal it was refused, and behind it was told another model's answer from where it stood."""
    for is_first in (True, False):
        door = Door(DoorSettings("a"))
        reader = door.ask(ASKED, 60.0, 0.0)
        entry = reader.entry
        door.take(Accepted("a", entry.route, "t/q", 0, ""), 0.1)
        door.leave(reader, 0.2, is_final=False)
        if is_first:
            door.resume(ASKED, [5], 60.0, 0.3)
        door.take(Seal("a", entry.route, "t/q", 1 << 16, B), 0.4)
        if not is_first:
            door.resume(ASKED, [5], 60.0, 0.5)
        assert REPLACED in str(entry.failure), is_first


def test_what_ended_unheard_is_told_to_a_gateway_that_the_last_scheduler_had_sealed() -> None:
    """Its replica was given up, and went on to the end; what was told of that bore an attempt that the gateway took no
    more."""
    first, here = Told(), replace(joined(), digest=A)
    start = starts(first.turn(here, ASKED))["t/q"]
    told = Told(epoch=3)
    held = Resident(start.seq, 0, start, ids([*range(40), *[7] * 8]), 47, start.table, start.lease_end)
    told.turn(ReplicaState(here, (held,), (), ()))
    last = told.scheduler.replicas["r0"].last_plan
    told.turn(Result("r0", 1, 3, 1, last, 1, stopped=(Stopped(start.seq, Reason.STOP, 47, ids()),)))
    deaf = 2 << 16
    state = GatewayState("a", (OpenRequest(ASKED, deaf + 1, (ids([7] * 5),), (Reason.NONE,)),))
    (replay,) = [order for order in told.turn(state) if isinstance(order, Replay)]
    assert replay.tokens.attempt > deaf and replay.tokens.reason is Reason.STOP


def test_what_is_given_up_while_it_moves_takes_its_move_with_it() -> None:
    """It bears another name then, by which nobody found the move: it leaked, or ended the scheduler."""
    few, one = submit("t/s", range(500, 516), 20), replace(submit("t/q", range(100), 600), gateway="a", route=1)
    first = Told()
    begun = starts(first.turn(joined(), few, one))

    def here(name: str, num_blocks: int) -> ReplicaJoined:
        return replace(joined(name, num_blocks=num_blocks, max_batch=4), bytes_per_s=1e9, prefill_tokens_per_s=100.0)

    def held(name: str, position: int) -> Resident:
        start = begun[name]
        return Resident(start.seq, 0, start, ids([*start.tokens, 7]), position, start.table, start.lease_end)

    told = Told(epoch=2)
    told.scheduler = Scheduler(SchedulerSettings(balance_gap=0.3), 2)
    residents = (held("t/q", 100), held("t/s", 16))
    told.now = 1.0
    orders = told.turn(ReplicaState(here("r0", 64), residents, (), ()), ReplicaState(here("r1", 45), (), (), ()))
    (read,) = transfers_of(orders)
    told.turn(GatewayState("a", (OpenRequest(one, 2, (ids([7]),), (Reason.NONE,)),)))
    dropped = Stopped(begun["t/q"].seq, Reason.DROPPED, 100, ids())
    told.turn(
        Result("r0", 1, 2, 1, told.scheduler.replicas["r0"].last_plan, 1, stopped=(dropped,)),
        Result("r1", 1, 2, 1, told.scheduler.replicas["r1"].last_plan, 1,
               transferred=(Transferred(read.transfer, True, "", 4096, 0.01),)),
    )  # fmt: skip
    assert not told.scheduler.movable.by_request and not told.scheduler.transfers
    assert told.scheduler.replicas["r1"].ledger.counts().held == 0


def test_a_gateway_that_comes_and_goes_makes_no_scheduler_new() -> None:
    """Each time what can never fit was accepted, and waited."""
    told = Told()
    told.turn(joined())
    told.turn(GatewayState("a", ()))
    huge = replace(submit("huge", range(500), 2000), gateway="a", route=2)
    assert [order.code for order in told.turn(huge) if isinstance(order, Refused)] == ["INVALID_ARGUMENT"]
