"""What must hold of a door after every event; raises AssertionError with the entry."""

from __future__ import annotations

from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Entry
from cluster.messages import Reason


def check(door: Door) -> None:
    is_own = door._kept.is_of_this_life
    unread: dict[str, int] = {}
    num_open: dict[str, int] = {}
    due, gateway, by_id = set(door._kept.deadlines), door.settings.gateway, door.by_id
    for route, entry in door.entries.items():
        submit = entry.submit
        assert route == entry.route and is_own(route), f"{_where(entry)} stands under route {route:#x}"
        assert not entry.is_gone, f"{_where(entry)} is gone and kept"
        assert submit.gateway == gateway, f"{_where(entry)} is another gateway's"
        named = by_id.get(submit.request_id)
        is_named = named is entry or (named is not None and named.is_asking)
        assert is_named or entry.is_asking, f"{_where(entry)} can't be found by its name"
        for deadline in (entry.waits_until, entry.grace_until):
            assert deadline is None or (deadline, route) in due, f"{_where(entry)} waits, and nothing wakes it"
        _check_end(entry)
        _check_log(entry)
        unread[submit.tenant] = unread.get(submit.tenant, 0) + entry.unread
        num_open[submit.tenant] = num_open.get(submit.tenant, 0) + 1
    for request_id, entry in by_id.items():
        is_kept = door.entries.get(entry.route) is entry and entry.submit.request_id == request_id
        assert is_kept, f"{request_id} is not kept"
    for route, (until, _) in door.handed.items():
        assert route not in door.entries and (until, route) in due, f"{route:#x} was handed over, and is kept"
    for route in door.pins:
        assert route not in door.entries and is_own(route), f"pin {route:#x} stands under another route"
    assert {tenant: size for tenant, size in unread.items() if size} == door.unread.by_tenant, "unread by tenant"
    assert sum(unread.values()) == door.unread.total <= door.settings.unread.total, "unread in all"
    assert num_open == door.quotas.num_open(), "requests by tenant"
    assert len(door.entries) <= door.settings.max_open, f"{len(door.entries)} entries"


def _where(entry: Entry) -> str:
    return f"{entry.request_id} (route {entry.route:#x})"


def _check_end(entry: Entry) -> None:
    """Something ends each entry, whatever does not come."""
    has_all = entry.log.is_complete
    is_complete = entry.done is not None and has_all
    assert (entry.ended is not None) == is_complete, f"{_where(entry)}: complete {is_complete}, ended at {entry.ended}"
    if entry.accepted is None and entry.done is None and entry.failure is None:
        assert entry.waits_until is not None, f"{_where(entry)} was not accepted, and waits for ever"
    if entry.done is not None and not is_complete:
        assert entry.waits_until is not None, f"{_where(entry)} lacks its last tokens, and waits for ever"
    if entry.grace_until is not None:
        most = entry.away_since + entry.grace_s + entry.grace_s
        assert entry.grace_until <= most, f"{_where(entry)} is kept until {entry.grace_until}, and {most} is the bound"
    if not entry.is_read:
        is_ending = entry.ended is None and (entry.is_cancelled or entry.failure is not None)
        assert entry.grace_until is not None or is_ending, f"{_where(entry)} is kept for ever for a client who has left"
    else:
        assert entry.grace_until is None, f"{_where(entry)} is read, and will be given up"
    assert has_all or not (entry.is_cancelled or entry.failure is not None), f"{_where(entry)} still listens"


def _check_log(entry: Entry) -> None:
    log, reader = entry.log, entry.reader
    for sequence in log.sequences:
        length = len(sequence.ids)
        assert sequence.logprobs is None or len(sequence.logprobs) == length, (
            f"{_where(entry)}: logprobs of other tokens"
        )
        assert not sequence.is_cut or sequence.reason is Reason.STOP, f"{_where(entry)}: cut, and not ended"
        if not reader.is_ahead:
            assert reader.sent[sequence.index] <= length, f"{_where(entry)}: told more than is known"
    assert log.sealed <= log.attempt, f"{_where(entry)}: sealed up to {log.sealed}, and heard of {log.attempt}"
    unread = reader.unread_bytes()
    is_right = entry.unread == unread or (entry.failure is not None and not entry.unread)
    assert is_right, f"{_where(entry)}: {entry.unread} bytes are counted as unread, and {unread} are"
