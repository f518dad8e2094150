"""What has left replicas, and nobody else tells of: a new scheduler asks here before it says that it knows no request.

A gateway and the scheduler may die at once. What ran then, its replica tells. What had just ended, or waited to start
again, left its replica a moment before, which remembers it for a while (`cluster/desk/departures.py`). It is looked at
only when everybody had time to tell, and only for who asks: most of it is over and told. What is known from others goes
on as they say, and is forgotten here: once that has ended, nothing older may come back in its place.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.centre.books import Books
from cluster.centre.deadlines import Deadlines
from cluster.centre.nouns import Request, Sequence, State
from cluster.messages import ATTEMPT_BITS, Departed, ReplicaJoined, Start, Submit, ids
from cluster.messages.resume import difference


class Recall:
    """The last attempts of requests, by request and sequence."""

    def __init__(self, books: Books, deadlines: Deadlines) -> None:
        self._books = books
        self._deadlines = deadlines
        # When the last was told; and when they are looked through next.
        self._told_at = self._look_at = 0.0

    def hear(self, departed: tuple[Departed, ...], joined: ReplicaJoined) -> None:
        """What a replica remembers. Of a request the last attempt counts."""
        self._told_at = self._look_at = self._books.now
        for one in departed:
            known = self._books.departed.setdefault(one.start.request_id, {})
            newest = max((other.seq for other, _ in known.values()), default=0)
            if not all(_is_one_attempt(one.start, other.start) for other, _ in known.values()):
                if one.seq < newest:
                    continue
                known.clear()
            known[one.index] = one, joined

    def fill(self, request: Request, start: Start, pool: int) -> list[Sequence]:
        """Of an attempt that a replica runs: those of its sequences that have left there already."""
        filled = []
        for sequence in request.sequences:
            one, _ = self._books.departed.get(request.request_id, _NOTHING).get(sequence.index, (None, None))
            if one is not None and not sequence.seq and not sequence.is_ended and _is_one_attempt(one.start, start):
                _take(sequence, one)
                # Its last tokens may be on their way from there.
                sequence.last_pool = pool
                filled.append(sequence)
        return filled

    def recall(self, asked: Submit | None, request_id: str) -> Request | None:
        """A request of which nobody has told, as far as it is known here; its client asks for it, as `asked` says if
        that says it whole. None: there is none, or everybody has not had time to tell yet."""
        books = self._books
        told = books.departed.get(request_id)
        if told is None or books.hearing.ends_at is not None:
            return None
        newest, joined = max(told.values(), key=lambda one: one[0].seq)
        start = newest.start
        request = Request(told_by(start, joined), books.next_arrival(), books.tenants.get(""), books.now)
        assert request.sampling is not None
        if asked is not None and difference(asked, "", request.prompt, request.sampling, request.priority)[0]:
            # Its name was used before.
            return None
        del books.departed[request_id]
        self._enter(request, told)
        request.attempt = max(start.attempt, (books.epoch - 1) << ATTEMPT_BITS)
        request.orphaned_until = books.now + self._grace_s(start)
        self._deadlines.wake_at(request.orphaned_until, request)
        books.counters["requests recalled"] += 1
        return request

    def expire(self) -> None:
        """Called in every turn, before its events: once everybody had time to tell, what somebody has told of is
        forgotten, and later what nobody can come back for any more."""
        books = self._books
        if not books.departed or books.hearing.ends_at is not None or books.now < self._look_at:
            return
        wait_s = books.settings.rebuild_s
        begins = self._told_at + wait_s
        until = {request_id: begins + self._longest_grace_s(request_id) for request_id in books.departed}
        for request_id, when in until.items():
            if when < books.now or books.find(request_id) is not None:
                del books.departed[request_id]
        self._look_at = max(books.now + wait_s, min(until.values()))

    def check(self) -> None:
        books = self._books
        if books.departed and books.hearing.ends_at is None:
            longest = max(map(self._longest_grace_s, books.departed))
            until = self._told_at + longest + 2 * books.settings.rebuild_s
            assert books.now <= until, f"{len(books.departed)} departed requests are kept, and nobody comes for them"

    def _enter(self, request: Request, told: Mapping[int, tuple[Departed, ReplicaJoined]]) -> None:
        """What has ended is told; all else waits, sealed, for the gateway that its client comes back through."""
        books = self._books
        request.turn, request.is_confirmed = -1, False
        for sequence in request.sequences:
            if sequence.index in told:
                _take(sequence, told[sequence.index][0])
        if request.live:
            request.state, request.is_sealing = State.SEALING, True
            books.requests[request.request_id] = request
            books.tenants.enter(request.tenant)
        else:
            request.state = State.ENDED
            books.unclosed[request.request_id] = request

    def _longest_grace_s(self, request_id: str) -> float:
        return max(self._grace_s(one.start) for one, _ in self._books.departed[request_id].values())

    def _grace_s(self, start: Start) -> float:
        return max(self._books.settings.orphan_grace_s, start.grace_s)


_NOTHING: Mapping[int, tuple[Departed, ReplicaJoined]] = {}


def told_by(start: Start, joined: ReplicaJoined) -> Submit:
    """What was asked, as far as a Start tells of it; a gateway, or its client, will tell the rest."""
    return Submit(
        start.request_id,
        start.gateway,
        start.route,
        joined.model,
        "",
        ids(start.tokens[: start.num_prompt]),
        (),
        start.sampling,
        start.precedence >> 40,
        start.salt,
        digest=joined.digest,
        grace_s=start.grace_s,
    )


def _take(sequence: Sequence, one: Departed) -> None:
    if not sequence.request.width:
        sequence.outputs = ids(one.start.tokens[one.start.num_prompt :])
    if one.has_ended:
        sequence.reason = one.reason


def _is_one_attempt(one: Start, other: Start) -> bool:
    num = one.num_prompt
    alike = (one.attempt, num, one.sampling) == (other.attempt, other.num_prompt, other.sampling)
    return alike and one.tokens[:num] == other.tokens[:num]
