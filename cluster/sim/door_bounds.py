"""A door at its bounds: the last that is taken and the first that is refused, of each bound that a tenant can have.

Some histories try a door of their own so before they begin: clients of a history seldom ask for as much.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cluster.errors import ProtocolError, QueueFull, WorkFailed
from cluster.gateway.door.check import check
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import KEPT_TOKEN_BYTES, Entry
from cluster.gateway.door.kept import DoorSettings
from cluster.gateway.door.quotas import BURST_S, Quotas
from cluster.gateway.door.unread import UnreadBounds
from cluster.messages import Accepted, Cancel, GatewayState, Pin, Tokens, ids
from cluster.sim.client import Violation
from cluster.sim.edges import PIN, SUBMIT
from cluster.tenants import TenantLimits


def check_bounds() -> None:
    """Raises Violation or AssertionError where a bound is another one than it says."""
    _open_requests()
    _open_of_all()
    _rates()
    _come_back()
    _streams()
    _pins()
    _unread()
    _graces()
    _ends()


def _refuses(act: Callable[[], object], retry_s: float, what: str) -> None:
    """It is refused, with the time after which it would not be."""
    try:
        act()
    except QueueFull as error:
        if abs(error.retry_after_s - retry_s) > 1e-6 or what not in str(error):
            raise Violation(f"refused for {error.retry_after_s} s and not {retry_s}: {error}") from error
        return
    raise Violation(f"what is over the bound is taken: {what}")


def _open_requests() -> None:
    quotas, two = Quotas(), TenantLimits(open_requests=2)
    quotas.enter(SUBMIT, two, 0.0)
    quotas.adopt(SUBMIT, 2)
    _refuses(lambda: quotas.adopt(SUBMIT, 2), 1.0, "2 requests of this tenant")
    _refuses(lambda: quotas.enter(SUBMIT, two, 0.0), 1.0, "2 requests of this tenant")
    quotas.enter(replace(SUBMIT, tenant="other"), two, 0.0)
    quotas.adopt(SUBMIT)
    assert quotas.num_open() == {"t": 3, "other": 1}
    for _ in range(2):
        quotas.leave(SUBMIT, 0)
    quotas.enter(SUBMIT, two, 0.0)
    quotas.check("nobody", two, 0.0)
    quotas.leave(SUBMIT, 0)
    quotas.leave(SUBMIT, 0)
    assert quotas.num_open() == {"other": 1}


def _open_of_all() -> None:
    """Whatever is open counts: requests, looks for requests and pins."""
    door, other = Door(DoorSettings("g", max_open=3)), replace(SUBMIT, request_id="other")
    door.ask(SUBMIT, 1.0, 0.0)
    route = door.find("nobody")
    door.pin(PIN, 0.0)
    for act in (lambda: door.ask(other, 1.0, 0.0), lambda: door.find("nobody"), door.check_open):
        _refuses(act, 1.0, "3 requests are under way here")
    door.leave_find(route)
    door.ask(other, 1.0, 0.0)


def _rates() -> None:
    quotas, limits = Quotas(), TenantLimits(requests_per_s=0.5)
    burst = int(0.5 * BURST_S)
    for _ in range(burst):
        quotas.enter(SUBMIT, limits, 100.0)
    _refuses(lambda: quotas.enter(SUBMIT, limits, 100.0), 2.0, "0.5 requests a second")
    _refuses(lambda: quotas.read("t", limits, 101.0), 1.0, "0.5 requests a second")
    quotas.read("t", limits, 102.0)
    _refuses(lambda: quotas.check("t", limits, 103.0), 1.0, "0.5 requests a second")
    quotas.check("t", TenantLimits(), 103.0)
    quotas.read("t", TenantLimits(), 103.0)
    # However long nobody asks, there is one burst, and one request at least.
    for _ in range(burst):
        quotas.enter(SUBMIT, limits, 1000.0)
    _refuses(lambda: quotas.check("t", limits, 1000.0), 2.0, "0.5 requests a second")
    slow = TenantLimits(requests_per_s=0.01)
    quotas.enter(replace(SUBMIT, tenant="slow"), slow, 0.0)
    _refuses(lambda: quotas.check("slow", slow, 50.0), 50.0, "0.01 requests a second")
    # What is larger than a burst gets through as well, and what was not written of it is given back.
    tokens, asked = TenantLimits(tokens_per_s=1.0), replace(SUBMIT, tenant="tokens", prompt=ids(range(26)))
    quotas.enter(asked, tokens, 0.0)
    _refuses(lambda: quotas.enter(asked, tokens, 0.0), 21.0, "1 tokens a second")
    quotas.leave(asked, 4)
    _refuses(lambda: quotas.check("tokens", tokens, 0.0), 17.0, "1 tokens a second")
    several = replace(asked, sampling=replace(asked.sampling, n=3), tenant="several")
    quotas.enter(several, tokens, 0.0)
    _refuses(lambda: quotas.check("several", tokens, 0.0), 29.0, "1 tokens a second")
    unsaid = replace(asked, sampling=replace(asked.sampling, max_tokens=None), tenant="unsaid")
    quotas.enter(unsaid, tokens, 0.0)
    _refuses(lambda: quotas.check("unsaid", tokens, 0.0), 18.0, "1 tokens a second")


def _come_back() -> None:
    quotas, limits = Quotas(), TenantLimits(requests_per_s=0.1)
    for _ in range(3):
        quotas.come_back("t", limits, 3, 0.0)
    _refuses(lambda: quotas.come_back("t", limits, 3, 0.0), 10.0, "come back")
    quotas.come_back("t", limits, 3, 10.0)
    quotas.come_back("t", TenantLimits(), 3, 10.0)
    # They are counted by themselves.
    quotas.read("t", limits, 10.0)


def _streams() -> None:
    quotas, one = Quotas(), TenantLimits(streams=1)
    quotas.begin_stream("t", one, 2)
    _refuses(lambda: quotas.begin_stream("t", one, 2), 1.0, "1 GenerateMany streams")
    quotas.begin_stream("t", TenantLimits(), 2)
    _refuses(lambda: quotas.begin_stream("t", TenantLimits(), 2), 1.0, "2 GenerateMany streams")
    quotas.begin_stream("other", TenantLimits(streams=5), 2)
    assert quotas.num_streams == 3
    quotas.end_stream("t")
    assert quotas.num_streams == 2
    _refuses(lambda: quotas.begin_stream("t", one, 2), 1.0, "1 GenerateMany streams")
    quotas.end_stream("t")
    quotas.begin_stream("t", one, 2)


def _pins() -> None:
    door, one = Door(DoorSettings("g")), TenantLimits(pins=1)

    def pin(until: float, now: float) -> int:
        return door.pin(replace(PIN, until=until), now, one)

    route = pin(5.0, 0.0)
    _refuses(lambda: pin(5.0, 0.0), 5.0, "1 prefixes")
    _refuses(lambda: pin(9.0, 4.5), 1.0, "1 prefixes")
    check(door)
    door.leave_pin(route)
    door.leave_pin(route)
    pin(8.0, 4.5)
    _refuses(lambda: pin(9.0, 5.0), 3.0, "1 prefixes")
    pin(20.0, 8.0)
    told = [event for event in door.take_orders().events if isinstance(event, Pin)]
    assert len(told) == 3 and len(door.pins) == 2, told
    door.pin(replace(PIN, until=30.0), 8.0)
    _refuses(lambda: door.pin(replace(PIN, until=30.0), 8.0, TenantLimits(pins=2)), 12.0, "2 prefixes")


def _unread() -> None:
    """Who has most of what is unread goes: of the tenant that has too much, or of all."""
    door = Door(DoorSettings("g", unread=UnreadBounds(*(num * KEPT_TOKEN_BYTES for num in (10, 15, 20)))))
    entries: list[Entry] = []

    def ask(tenant: str, unread_bytes: int = 0) -> Entry:
        submit = replace(SUBMIT, request_id=f"{tenant}/{len(entries)}", tenant=tenant)
        submit = replace(submit, sampling=replace(submit.sampling, max_tokens=100))
        entries.append(door.ask(submit, 1.0, 0.0, limits=TenantLimits(unread_bytes=unread_bytes)).entry)
        return entries[-1]

    def tell(entry: Entry, num: int) -> list[int]:
        """So many tokens come; returns whose answers ended by that, one after the other."""
        before = [one for one in entries if one.failure is not None]
        tokens = Tokens(entry.route, 0, 1, len(entry.log.sequences[0].ids), ids([1] * num))
        fresh = door.fresh(tokens, 0.0)
        assert fresh is not None
        door.take_tokens(tokens, fresh, None, 0.0)
        check(door)
        return [at for at, one in enumerate(entries) if one.failure is not None and one not in before]

    first, second, third = ask("a"), ask("a"), ask("b")
    assert (tell(first, 10), tell(second, 5), tell(third, 5)) == ([], [], [])
    # Twenty are unread, and fifteen of them are of one tenant: one more of the other is too much for all.
    assert tell(third, 1) == [0] and tell(second, 5) == []
    assert tell(second, 1) == [1], "more than a request may have"
    fourth, fifth = ask("b"), ask("b")
    assert tell(fourth, 9) == [] and tell(fifth, 1) == [3], "more than a tenant may have"
    limited = ask("c", 3 * KEPT_TOKEN_BYTES)
    assert tell(limited, 3) == [] and tell(limited, 1) == [5], "more than this tenant may have"
    unlimited = ask("c")
    assert tell(unlimited, 10) == []


def _graces() -> None:
    """A client that is away has its grace, and once more if the scheduler is met in it; a new one begins it anew."""
    for wants_state, meets, until in (
        (False, (), 4.0),
        (False, (3.0,), 7.0),
        (False, (3.0, 6.0, 7.5), 8.0),
        (True, (3.0,), 7.0),
        (True, (3.0, 6.9), 10.9),
    ):
        door = Door(DoorSettings("g"))
        left, stays = (door.ask(replace(SUBMIT, request_id=f"t/{name}"), 4.0, 0.0) for name in ("left", "stays"))
        for reader in (left, stays):
            door.take(Accepted("g", reader.entry.route, reader.entry.request_id, 0, ""), 0.0)
        door.leave(left, 0.0, is_final=False)
        door.take_orders()
        for at in meets:
            door.meet(at, wants_state=wants_state)
            check(door)
        num_states = sum(isinstance(event, GatewayState) for event in door.take_orders().events)
        assert num_states == wants_state * len(meets), "the state is told to whom it is new"
        door.tick(until - 0.01, is_met=True)
        check(door)
        early = door.take_orders().events
        door.tick(until, is_met=True)
        (told,) = door.take_orders().events
        assert not early and told == Cancel("t/left", "g", left.entry.route), (
            f"{early} and {told} end a grace at {until}"
        )
        assert stays.entry.grace_until is None
    door = Door(DoorSettings("g"))
    reader = door.ask(SUBMIT, 4.0, 0.0)
    door.take(Accepted("g", reader.entry.route, reader.entry.request_id, 0, ""), 0.0)
    door.leave(reader, 0.0, is_final=False)
    for at in (4.0, 8.0):
        # Without a scheduler no grace ends.
        door.tick(at, is_met=False)
        check(door)
        assert reader.entry.grace_until == at + 4.0 and not reader.entry.is_cancelled


def _ends() -> None:
    """A cancel ends what is under way, and only once; what a worker says and cannot be so ends its request."""
    door = Door(DoorSettings("g"))
    door.ask(SUBMIT, 1.0, 0.0)
    (entry,) = door.entries.values()
    ended = [door.cancel(name, 0.0) for name in (entry.request_id, entry.request_id, "nobody")]
    assert ended == [True, False, False], ended
    door = Door(DoorSettings("g"))
    door.ask(SUBMIT, 1.0, 0.0)
    (entry,) = door.entries.values()
    door.misfit(entry, ProtocolError("a token behind the end"), 0.0)
    assert isinstance(entry.failure, WorkFailed) and not door.cancel(entry.request_id, 0.0), entry.failure
