"""Words at the edge of what can be so: the largest figure that a peer may tell is taken, one more is a flaw.

Some histories hold `cluster/centre/flaws.py` against these before they begin: no simulated peer tells such figures.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from cluster.centre import flaws
from cluster.centre.scheduler import Scheduler
from cluster.hashing import HASH_BYTES
from cluster.messages import (
    Adopt,
    Advances,
    Beams,
    Cancel,
    Departed,
    Event,
    Expel,
    Find,
    GatewayState,
    HostPoolJoined,
    Pin,
    Reason,
    Refused,
    ReplicaJoined,
    ReplicaState,
    Resident,
    Result,
    Road,
    Sealed,
    Start,
    StopAt,
    Submit,
    Transfer,
    Transferred,
    TurnAway,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings
from cluster.sim.client import Violation

NAN = float("nan")
LONGEST = "x" * flaws.MAX_NAME
NAME = bytes(HASH_BYTES)
RATE, NUMBER = (0.0, flaws.MAX_RATE), (0, flaws.MAX_NUMBER)

SAMPLING = SamplingParams(temperature=0.0, max_tokens=4, seed=0).resolve({}, vocab_size=100, max_model_len=100)
JOINED = ReplicaJoined("w", 1, "node", "m", 8, 4, 64, "layout", 4, 100)
POOL = HostPoolJoined("h", 1, "node", 8, 64, "layout")
RESULT = Result("w", 1, 1, 1, 1, 1)
SUBMIT = Submit("t/r", "g", 1, "m", "t", ids([1, 2]), (NAME,), SAMPLING)
PIN = Pin("t/p", "g", 1, "m", "t", ids([1, 2]), (NAME,), 1.0)
START = Start(1, "t/r", 0, 1, "g", 1, ids(range(8)), 6, 0, ids([0, 1]), 8, 0, SAMPLING, b"", b"")
RESIDENT = Resident(1, 0, START, ids(range(8)), 6, ids([0, 1]), 8)
DEPARTED = Departed(1, 0, START, Reason.STOP)
STATE = ReplicaState(JOINED, (RESIDENT,), ((2, NAME),), (Transfer(1, Road.READ, "h", 1, ids([3]), ids([0]), 1.0),))


def check_edges() -> None:
    """Raises Violation where a word is a flaw that can be so, or is none that cannot."""
    for event, is_flawed in _words():
        flaw = flaws.flaw_of(event)
        if bool(flaw) != is_flawed:
            raise Violation(f"{str(event)[:300]} {f'is refused: {flaw}' if flaw else 'is taken'}")
    for told, is_flawed in (((0, 1, 1), False), ((-1, 1, 1), True), ((0, 2, 1), True), ((0, 0, 0), True)):
        if bool(flaws.flaw_of_open(SUBMIT, *told)) != is_flawed:
            raise Violation(f"attempt, outputs and ends {told} of an open request are wrongly judged")
    beams = replace(SUBMIT, sampling=replace(SAMPLING, n=1, beam_width=2))
    if flaws.flaw_of_open(beams, 0, 2, 2) or not flaws.flaw_of_open(beams, 0, 2, 1):
        raise Violation("outputs of beams of an open request are wrongly judged")
    _check_refusals()


def _check_refusals() -> None:
    """Who tells what cannot be hears so by name, and nobody else."""
    scheduler = Scheduler(SchedulerSettings())
    place = "g", 1, "t/r"

    def answers(event: Event) -> list[tuple[object, ...]]:
        told: list[tuple[object, ...]] = []
        for order in scheduler.turn([event], 1.0):
            if isinstance(order, Refused):
                told.append((order.gateway, order.route, order.request_id, order.code))
            elif isinstance(order, TurnAway | Expel):
                told.append((type(order), order.replica, order.incarnation))
        return told

    submit = replace(SUBMIT, prompt=ids())
    of_others = replace(RESULT, incarnation=2, dry=-1), replace(RESULT, epoch=2, dry=-1)
    wrong: list[tuple[Event, tuple[object, ...]]] = [
        (submit, (*place, "INVALID_ARGUMENT")),
        (Adopt(submit), (*place, "INVALID_ARGUMENT")),
        (replace(PIN, prompt=ids()), ("g", 1, "t/p", "INVALID_ARGUMENT")),
        (Find("", "g", 1), ("g", 1, "", "INVALID_ARGUMENT")),
        (replace(JOINED, block_size=0), (TurnAway, "w", 1)),
        (replace(STATE, cached=((8, NAME),)), (TurnAway, "w", 1)),
        (replace(RESULT, dry=-1), ()),
        (GatewayState("", ()), ()),
        (JOINED, ()),
        *((result, ()) for result in of_others),
        (replace(RESULT, dry=-1), (Expel, "w", 1)),
    ]
    for event, answer in wrong:
        told = answers(event)
        if told != ([answer] if answer else []):
            raise Violation(f"{str(event)[:300]} is answered by {told}, not {answer}")
    num_wrong = sum(event is not JOINED for event, _ in wrong)
    if scheduler.counters["events refused"] != num_wrong or scheduler.replicas:
        raise Violation(f"{scheduler.counters['events refused']} of {num_wrong} events are refused")


def _figures(event: Any, **bounds: tuple[Any, Any]) -> Iterator[tuple[Any, bool]]:
    for name, (low, high) in bounds.items():
        values = [(low, False), (high, False), (low - 1, True)]
        values += [(1.01 * high, True), (NAN, True)] if isinstance(high, float) else [(high + 1, True)]
        for value, is_flawed in values:
            yield replace(event, **{name: value}), is_flawed


def _names(event: Any, name: str) -> Iterator[tuple[Any, bool]]:
    for text, is_flawed in (("x", False), (LONGEST, False), (LONGEST + "x", True), ("", True)):
        yield replace(event, **{name: text}), is_flawed


def _words() -> Iterator[tuple[Any, bool]]:
    rights: list[Any] = [JOINED, POOL, RESULT, SUBMIT, PIN, STATE, Adopt(SUBMIT), GatewayState("g", ())]
    yield from ((event, False) for event in rights)
    yield GatewayState("", ()), True
    yield from _names(JOINED, "replica")
    yield from _names(POOL, "pool")
    for named in (SUBMIT, PIN, Find("t/r", "g", 1)):
        yield from _names(named, "request_id")
    sizes = {"num_blocks": (1, flaws.MAX_BLOCKS), "block_bytes": (1, flaws.MAX_BYTES)}
    yield from _figures(POOL, incarnation=NUMBER, bytes_per_s=RATE, **sizes)
    for figure in _figures(
        JOINED,
        incarnation=NUMBER,
        block_size=(1, flaws.MAX_BLOCK_SIZE),
        max_batch=(1, flaws.MAX_BATCH),
        max_model_len=(1, flaws.MAX_TOKENS),
        prefill_tokens_per_s=RATE,
        bytes_per_s=RATE,
        **sizes,
    ):
        yield figure
        yield replace(STATE, joined=figure[0], residents=(), cached=(), transfers=()), figure[1]
    yield from _figures(StopAt("t/r", 0, 0), index=(0, flaws.MAX_SEQUENCES), num_outputs=(0, flaws.MAX_TOKENS))
    yield Cancel("t/r", code="x", detail="x" * (flaws.MAX_DETAIL - 1)), False
    yield Cancel("t/r", code="x", detail="x" * flaws.MAX_DETAIL), True
    yield Sealed("t/r", "g", 1, 1, (ids(),), (Reason.NONE,)), False
    yield Sealed("t/r", "g", 1, 1, (ids(),), ()), True
    yield from _asked()
    yield from _results()
    yield from _states()


def _asked() -> Iterator[tuple[Any, bool]]:
    for asked in (SUBMIT, PIN):
        yield replace(asked, prompt=ids()), True
        yield replace(asked, prompt=ids([1])), False
        yield replace(asked, hashes=(NAME, NAME[1:])), True
    yield replace(PIN, until=NAN), True
    yield replace(SUBMIT, deadline=NAN), True
    yield replace(SUBMIT, deadline=1.0), False
    yield replace(SUBMIT, look="x" * flaws.MAX_LOOK), False
    yield replace(SUBMIT, look="x" * (flaws.MAX_LOOK + 1)), True
    yield Adopt(replace(SUBMIT, prompt=ids())), True
    yield from _figures(SUBMIT, priority=(-flaws.MAX_PRIORITY, flaws.MAX_PRIORITY))
    for sampling, is_flawed in _samplings():
        yield replace(SUBMIT, sampling=sampling), is_flawed


def _samplings() -> Iterator[tuple[SamplingParams, bool]]:
    """What was asked for is told with all its figures."""
    for max_tokens, is_flawed in ((1, False), (flaws.MAX_TOKENS, False), (flaws.MAX_TOKENS + 1, True), (None, True)):
        yield replace(SAMPLING, max_tokens=max_tokens), is_flawed


def _results() -> Iterator[tuple[Any, bool]]:
    told = Advances(array("q", [1]), ids([4]), ids([1]), ids([7]), ids([1]), NAME)
    yield replace(RESULT, advances=told), False
    for wrong in (
        replace(told, seqs=array("q", [1, 2])),
        replace(told, positions=ids()),
        replace(told, num_ids=ids([1, 0])),
        replace(told, num_hashes=ids([1, 0])),
        replace(told, ids=ids()),
        replace(told, hashes=NAME[1:]),
    ):
        yield replace(RESULT, advances=wrong), True
    transferred = Transferred(1, True, "", 1, 1.0)
    for one, is_flawed in _figures(transferred, seconds=(0.0, 1e9), size_bytes=(0, flaws.MAX_BYTES)):
        yield replace(RESULT, transferred=(transferred, one)), is_flawed
    figures = {"step_seconds": (0.0, 1e9), "prefill_tokens_per_s": RATE, "prefill_waiting": NUMBER, "dry": NUMBER}
    yield from _figures(RESULT, **figures)
    yield replace(RESULT, unreached=("g",) * flaws.MAX_GATEWAYS), False
    yield replace(RESULT, unreached=("g",) * (flaws.MAX_GATEWAYS + 1)), True
    yield replace(RESULT, unreached=(LONGEST,)), False
    yield replace(RESULT, unreached=("g", LONGEST + "x")), True


def _states() -> Iterator[tuple[Any, bool]]:
    for cached, is_flawed in (((0, NAME), False), ((7, NAME), False), ((-1, NAME), True), ((8, NAME), True)):
        yield replace(STATE, cached=(cached,)), is_flawed
    yield replace(STATE, cached=((2, NAME[1:]),)), True
    for mine, is_flawed in (([], False), ([0, 7], False), ([-1, 3], True), ([2, 8], True)):
        transfer = replace(STATE.transfers[0], mine=ids(mine))
        yield replace(STATE, transfers=(transfer,)), is_flawed
    yield replace(STATE, residents=(RESIDENT, replace(RESIDENT, index=0))), True
    for resident, is_flawed in _residents():
        yield replace(STATE, residents=(resident,)), is_flawed
    yield replace(STATE, departed=(DEPARTED,) * flaws.MAX_DEPARTED), False
    yield replace(STATE, departed=(DEPARTED,) * (flaws.MAX_DEPARTED + 1)), True
    yield replace(STATE, departed=(replace(DEPARTED, reason=Reason.NONE),)), True
    # Of four tokens behind the prompt none can be the fifth.
    for num, is_flawed in ((10, False), (11, True)):
        yield replace(STATE, departed=(replace(DEPARTED, start=replace(START, tokens=ids(range(num)))),)), is_flawed
    yield from _sharing()


def _residents() -> Iterator[tuple[Any, bool]]:
    yield from _figures(RESIDENT, seq=(1, flaws.MAX_NUMBER), index=(0, 0), lease_end=(6, 8), position=(0, 8))
    yield replace(RESIDENT, position=0, lease_end=0), False
    yield replace(RESIDENT, position=0, lease_end=-1), True
    yield replace(RESIDENT, table=ids([0, 7])), False
    yield replace(RESIDENT, table=ids(), position=0, lease_end=0), False
    for table in ([0, 8], [-1, 0], [1, 1]):
        yield replace(RESIDENT, table=ids(table)), True
    yield replace(RESIDENT, tokens=ids(range(6))), False
    yield replace(RESIDENT, tokens=ids(range(5))), True
    most = flaws.MAX_PRIORITY << 40
    for start, is_flawed in _figures(
        START, attempt=(1, flaws.MAX_NUMBER), num_prompt=(1, 8), precedence=(-most, most), grace_s=(0.0, 1e9)
    ):
        yield replace(RESIDENT, start=start), is_flawed
    for sampling, is_flawed in _samplings():
        yield replace(RESIDENT, start=replace(START, sampling=sampling)), is_flawed
    yield replace(RESIDENT, start=replace(START, request_id="")), True
    two = replace(RESIDENT, start=replace(START, sampling=replace(SAMPLING, n=2)))
    yield from _figures(two, index=(0, 1))
    beams = replace(START, sampling=replace(SAMPLING, beam_width=2), beams=Beams(2, ids(), (), b""))
    yield from _figures(replace(RESIDENT, start=beams), index=(0, 0))


def _sharing() -> Iterator[tuple[Any, bool]]:
    """What is written to its end anybody may share; what is not, forks of one request, and only full prompt blocks."""
    start = replace(START, sampling=replace(SAMPLING, n=2))
    one, other = replace(RESIDENT, start=start), replace(RESIDENT, seq=2, index=1, start=start, table=ids([0, 2]))
    stranger = replace(other, start=replace(start, request_id="t/other"))

    def state(*residents: Resident) -> ReplicaState:
        return replace(STATE, residents=residents, cached=())

    yield state(one, other), False
    yield state(one, stranger), False
    yield state(one, replace(stranger, position=4)), False
    yield state(one, replace(stranger, position=3)), True
    yield state(one, replace(other, position=3)), False
    yield state(one, replace(other, table=ids([2, 1]))), True
    for num_prompt, position, is_flawed in ((6, 8, False), (6, 7, True), (7, 7, True), (8, 7, False)):
        both = [replace(each, table=ids([0, 1]), position=position) for each in (one, other)]
        yield state(*[replace(each, start=replace(start, num_prompt=num_prompt)) for each in both]), is_flawed
    beams = replace(START, sampling=replace(SAMPLING, beam_width=2), beams=Beams(2, ids(), (), b""))
    for num_prompt, is_flawed in ((8, False), (7, True)):
        groups = [replace(RESIDENT, seq=seq, position=8, start=replace(beams, num_prompt=num_prompt)) for seq in (1, 2)]
        yield state(*groups), is_flawed
