"""Mistakes planted into the door, for the rules of its page (`cluster/gateway/door/README.md`) that a client can see.

The others are held by `tests/gateway/`: what only costs more, and what needs a word to be lost at one moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cluster.gateway.door import door as doors
from cluster.gateway.door.door import Door
from cluster.gateway.door.entry import Entry, Finished, Part, Reader
from cluster.gateway.door.kept import DoorSettings, Kept
from cluster.gateway.door.log import RequestLog, SequenceLog
from cluster.gateway.door.notices import Notices
from cluster.gateway.door.unread import Unread
from cluster.messages import Adopt, Claim, Done, GatewayState, HandOver, Ids, Sealed, Tokens

Patch = pytest.MonkeyPatch


def never_says(patch: Patch, rules: type[Door | Notices], method: str, kind: type) -> None:
    """An event of this kind is lost when this method of the door makes it."""
    real = getattr(rules, method)

    def silent(self: Door | Notices, *args: Any, **kwargs: Any) -> Any:
        kept, tell = self._kept, self._kept.tell
        kept.tell = lambda event: None if isinstance(event, kind) else tell(event)  # type: ignore[method-assign]
        try:
            return real(self, *args, **kwargs)
        finally:
            del kept.tell  # type: ignore[method-assign]

    patch.setattr(rules, method, silent)


def routes_of_all_lives_are_alike(patch: Patch) -> None:
    make = Door.__init__

    def forgetful(self: Door, settings: DoorSettings) -> None:
        make(self, replace(settings, life=1))

    patch.setattr(Door, "__init__", forgetful)


def what_was_logged_changes(patch: Patch) -> None:
    take = RequestLog.take

    def rewriting(self: RequestLog, tokens: Tokens, fresh: Ids, cut: int | None = None) -> SequenceLog:
        sequence = take(self, tokens, fresh, cut)
        if len(sequence.ids) > 3 and tokens.attempt > 1:
            sequence.ids[0] += 1
        return sequence

    patch.setattr(RequestLog, "take", rewriting)


def a_stop_string_is_passed_over(patch: Patch) -> None:
    take = Door.take_tokens
    patch.setattr(Door, "take_tokens", lambda self, tokens, fresh, cut, now: take(self, tokens, fresh, None, now))


def a_stream_is_told_again_what_it_has(patch: Patch) -> None:
    make = Reader.__init__
    patch.setattr(Reader, "__init__", lambda self, entry, positions=(), tag=0: make(self, entry, (), tag))


def a_stream_misses_the_end_of_a_sequence(patch: Patch) -> None:
    read = Reader.read

    def short(self: Reader, most_bytes: int) -> tuple[list[Part], int]:
        parts, size = read(self, most_bytes)
        return [part for part in parts if not isinstance(part, Finished)], size

    patch.setattr(Reader, "read", short)


def a_stream_is_followed_by_one_that_knows_nothing_of_it(patch: Patch) -> None:
    leave = Door.leave

    def rash(self: Door, reader: Reader, now: float, *, is_final: bool) -> None:
        if not reader.has_left and reader.entry.reader is not reader and not reader.entry.is_gone:
            reader = reader.entry.reader
        leave(self, reader, now, is_final=True)

    patch.setattr(Door, "leave", rash)


def positions_that_are_ahead_are_refused(patch: Patch) -> None:
    check = doors.check_positions

    def strict(self: Door, asked: Any, positions: Sequence[int], *rest: Any, **named: Any) -> Reader:
        entry = self.by_id.get(asked.request_id)
        if entry is not None:
            check(positions, [len(sequence.ids) for sequence in entry.log.sequences])
        return resume(self, asked, positions, *rest, **named)

    resume = Door.resume
    patch.setattr(Door, "resume", strict)


def a_client_that_is_back_is_not_claimed(patch: Patch) -> None:
    never_says(patch, Door, "resume", Claim)


def another_request_of_the_name_is_taken_for_it(patch: Patch) -> None:
    patch.setattr(doors, "differs", lambda asked, entry: ("", ""))


def a_hand_over_is_obeyed_though_the_client_is_back(patch: Patch) -> None:
    on_hand_over = Notices._on_hand_over

    def blind(self: Notices, order: HandOver, now: float) -> None:
        entry = self._kept.entries.get(order.route)
        if entry is not None:
            entry.num_answered = entry.num_claims
            entry.reader.has_left = True
            entry.failure = None
            self._kept.forget(entry)
        on_hand_over(self, order, now)

    patch.setattr(Notices, "_on_hand_over", blind)


def a_hand_over_is_not_answered(patch: Patch) -> None:
    never_says(patch, Notices, "_on_hand_over", Sealed)


def who_reads_what_was_handed_over_is_not_sent_away(patch: Patch) -> None:
    on_hand_over = Notices._on_hand_over

    def mute(self: Notices, order: HandOver, now: float) -> None:
        entry = self._kept.entries.get(order.route)
        failure = None if entry is None else entry.failure
        on_hand_over(self, order, now)
        if entry is not None and entry.is_gone:
            entry.failure = failure

    patch.setattr(Notices, "_on_hand_over", mute)


def a_new_scheduler_is_not_told_the_state(patch: Patch) -> None:
    never_says(patch, Notices, "meet", GatewayState)


def a_new_scheduler_is_not_asked_again(patch: Patch) -> None:
    never_says(patch, Notices, "meet", Adopt)


def what_is_asked_for_is_told_as_kept(patch: Patch) -> None:
    patch.setattr(Entry, "is_asking", property(lambda self: False))


def a_grace_has_no_end(patch: Patch) -> None:
    patch.setattr(Kept, "set_grace", lambda self, entry, until: None)


def an_end_is_taken_before_the_last_tokens(patch: Patch) -> None:
    on_done = Notices._on_done

    def hasty(self: Notices, done: Done, now: float) -> None:
        entry = self._kept.entries.get(done.route)
        if entry is not None:
            entry.log.abort()
        on_done(self, done, now)

    patch.setattr(Notices, "_on_done", hasty)


def an_end_is_never_closed(patch: Patch) -> None:
    patch.setattr(Kept, "close", lambda self, entry, now: self.forget(entry))


def unread_bytes_are_never_read(patch: Patch) -> None:
    keep = Unread.set
    patch.setattr(Unread, "set", lambda self, entry, size: keep(self, entry, max(size, entry.unread)))


DOOR_PLANTS: dict[str, Callable[[Patch], None]] = {
    name.replace("_", " "): plant
    for name, plant in list(globals().items())
    if name != "never_says"
    and not name.startswith("_")
    and callable(plant)
    and callable(plant)
    and plant.__module__ == __name__
}
