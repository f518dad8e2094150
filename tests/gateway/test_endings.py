"""Something ends every request at a door, and the scheduler hears of it once."""

import pytest

from cluster.errors import Aborted, AlreadyExists, NotFound, QueueFull, Unavailable, WorkFailed
from cluster.gateway.door.entry import KEPT_TOKEN_BYTES, Whole
from cluster.gateway.door.kept import CLOSE_AFTER_S
from cluster.gateway.door.notices import LAST_TOKENS_S
from cluster.gateway.door.unread import UnreadBounds
from cluster.messages import Cancel, Claim, Closed, Reason, Refused, StopAt
from tests.gateway.doors import At, accepted, done, submit


def test_what_was_told_is_closed_a_little_later():
    at = At()
    reader = at.ask()
    entry = reader.entry
    at.take(accepted(entry))
    at.tokens(entry, 0, 5, 6, reason=Reason.LENGTH)
    assert at.take(done(entry)) == []
    at.read(reader)
    assert at.got == {0: [5, 6]} and isinstance(at.ends[-1], Whole) and reader.is_told
    at.leave(reader)
    assert at.wait(CLOSE_AFTER_S / 2) == [] and not at.door.entries
    assert at.wait(CLOSE_AFTER_S) == [Closed("t/q", "a", entry.route)]


def test_a_request_that_ends_while_its_client_is_away_is_kept_for_its_grace_and_no_longer():
    """It was kept for ever: its end took the alarm with it that was set for its client."""
    at = At()
    reader = at.ask(grace_s=5.0)
    entry = reader.entry
    at.take(accepted(entry))
    at.leave(reader)
    at.wait(2.0)
    at.tokens(entry, 0, 5, 6, reason=Reason.LENGTH)
    at.take(done(entry))
    assert at.wait(2.0) == [] and at.door.entries
    assert at.wait(3.0) == [Closed("t/q", "a", entry.route)] and not at.door.entries


def test_last_tokens_that_never_come_are_given_up_though_the_client_came_back_meanwhile():
    """Coming back took the alarm with it that was set for them."""
    at = At()
    reader = at.ask(grace_s=50.0)
    entry = reader.entry
    at.take(accepted(entry), done(entry))
    at.leave(reader)
    again = at.resume(grace_s=50.0)
    at.wait(LAST_TOKENS_S)
    at.read(again)
    assert again.is_told and isinstance(entry.failure, Aborted)


def test_a_request_that_is_made_again_behind_its_end_may_take_as_long_as_any():
    """Its last tokens were lost with their worker, and others of higher priority went before it."""
    at = At()
    entry = at.ask().entry
    at.take(accepted(entry), done(entry), accepted(entry))
    at.wait(3 * LAST_TOKENS_S)
    assert entry.failure is None and not entry.is_gone
    at.tokens(entry, 0, 5, 6, reason=Reason.LENGTH)
    at.take(done(entry))
    assert entry.ended is not None


def test_a_client_that_leaves_without_grace_ends_its_request_unless_it_is_elsewhere():
    at = At()
    reader = at.ask()
    entry = reader.entry
    at.take(accepted(entry))
    at.tokens(entry, 0, 5)
    at.leave(reader)
    assert at.said[1:] == [Cancel("t/q", "a", entry.route)]
    assert at.tokens(entry, 1, 6) == 0
    at.take(done(entry))
    assert at.wait(2.0) == [Closed("t/q", "a", entry.route)] and not at.door.entries


def test_a_grace_ends_and_a_client_that_is_back_ends_it():
    at = At()
    reader = at.ask(grace_s=5.0)
    at.take(accepted(reader.entry))
    at.leave(reader)
    again = at.resume()
    assert at.wait(20.0) == [] and isinstance(at.said[-1], Claim)
    at.leave(reader)
    assert at.wait(20.0) == [], "the stream before it has ended; this one reads"
    at.leave(again)
    assert at.wait(5.0) == [Cancel("t/q", "a", reader.entry.route)]


def test_a_grace_ends_though_the_link_to_the_scheduler_breaks_again_and_again():
    at = At()
    reader = at.ask(grace_s=5.0)
    at.take(accepted(reader.entry))
    at.leave(reader)
    left_at = at.now
    while not at.said or not isinstance(at.said[-1], Cancel):
        assert at.now - left_at < 15.0, "whose client has left is kept for ever"
        at.wait(0.25)
        at.meet(wants_state=False)


def test_no_grace_ends_while_the_scheduler_is_away():
    """The client may be at another gateway, and nobody could hear it; it has a whole grace once somebody can."""
    at = At()
    reader = at.ask(grace_s=5.0)
    entry = reader.entry
    at.take(accepted(entry))
    at.leave(reader)
    assert at.wait(30.0, is_met=False) == []
    at.meet(wants_state=False)
    assert at.wait(4.9) == [] and at.wait(0.1) == [Cancel("t/q", "a", entry.route)]
    # Nobody goes on with it here; another gateway may.
    (state, cancel) = at.meet()
    assert state.requests[0].finished == (Reason.NONE,) and isinstance(cancel, Cancel)


def test_what_nobody_takes_is_given_up():
    at = At(accept_timeout_s=30.0)
    reader = at.ask()
    at.wait(29.0)
    assert at.door.entries
    assert at.wait(1.0) == [Cancel("t/q", "a", reader.entry.route)]
    assert not at.door.entries and isinstance(reader.entry.failure, Unavailable)


def test_a_name_under_way_is_taken_and_one_that_was_told_is_free():
    at = At()
    reader = at.ask(grace_s=5.0)
    entry = reader.entry
    with pytest.raises(AlreadyExists, match="q is under way"):
        at.ask()
    at.take(accepted(entry))
    at.tokens(entry, 0, 5, reason=Reason.STOP)
    at.take(done(entry))
    at.read(reader)
    at.leave(reader)
    second = at.ask()
    assert second.entry is not entry
    assert at.wait(2.0) == [Closed("t/q", "a", entry.route)] and at.door.entries


def test_a_stop_string_ends_a_sequence_and_its_end_is_whole():
    at = At()
    reader = at.ask(submit(n=2))
    entry = reader.entry
    at.take(accepted(entry))
    assert at.tokens(entry, 0, 5, 6, 7, cut=2) == 2
    assert at.said[-1] == StopAt("t/q", 0, 2)
    assert at.tokens(entry, 3, 8, reason=Reason.LENGTH) == 0
    at.tokens(entry, 0, 9, index=1, reason=Reason.LENGTH)
    at.take(done(entry))
    at.read(reader)
    assert at.got == {0: [5, 6], 1: [9]} and reader.is_told


@pytest.mark.parametrize("code", ["NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT"])
def test_the_last_word_on_a_name_ends_it_though_it_was_cancelled(code: str):
    """It was kept for ever: nothing is said behind such a refusal."""
    at = At()
    reader = at.ask(grace_s=5.0)
    at.take(accepted(reader.entry))
    at.resume()
    at.door.cancel("t/q", at.now)
    at.step()
    at.take(Refused("a", reader.entry.route, "t/q", code, "it is not known"))
    assert not at.door.entries


def test_a_refusal_behind_the_end_changes_nothing():
    at = At()
    reader = at.ask(grace_s=5.0)
    at.take(accepted(reader.entry))
    at.leave(reader)
    again = at.resume()
    at.tokens(reader.entry, 0, 5, reason=Reason.STOP)
    at.take(done(reader.entry), Refused("a", reader.entry.route, "t/q", "NOT_FOUND", "it is not known"))
    at.read(again)
    assert again.is_told and reader.entry.failure is None and at.got == {0: [5]}


def test_a_refusal_before_anything_came():
    at = At()
    reader = at.ask()
    at.take(Refused("a", reader.entry.route, "t/q", "NOT_FOUND", "no request t/q of this tenant"))
    assert str(reader.entry.failure) == "no request q of this tenant" and isinstance(reader.entry.failure, NotFound)
    at.read(reader)
    assert reader.is_told and not at.door.entries


def test_what_is_unread_is_bounded_for_each_request_each_tenant_and_in_all():
    def fill(at: At, name: str, count: int):
        reader = at.ask(submit(f"{name}/{count}", tenant=name, n=1))
        at.take(accepted(reader.entry))
        at.tokens(reader.entry, 0, *range(count))
        return reader

    at = At(unread=UnreadBounds(request=10 * KEPT_TOKEN_BYTES, tenant=15 * KEPT_TOKEN_BYTES, total=1 << 30))
    large = fill(at, "t", 11)
    assert isinstance(large.entry.failure, QueueFull) and "880 bytes of this answer are unread" in str(
        large.entry.failure
    )
    assert not large.entry.log.num_tokens, "its memory is free at once"
    first, second, others = fill(at, "t", 9), fill(at, "t", 7), fill(at, "u", 10)
    assert "of this tenant's answers" in str(first.entry.failure) and second.entry.failure is None
    assert others.entry.failure is None
    # What is read is not counted.
    at.read(second)
    third = fill(at, "t", 10)
    assert third.entry.failure is None and at.door.unread.total == 20 * KEPT_TOKEN_BYTES
    at = At(unread=UnreadBounds(total=20 * KEPT_TOKEN_BYTES))
    one, most, two = fill(at, "t", 4), fill(at, "u", 12), fill(at, "t", 5)
    assert "of all answers here" in str(most.entry.failure) and one.entry.failure is two.entry.failure is None


@pytest.mark.parametrize(("position", "new"), [(3, (8,)), (1, (7,))], ids=["a gap", "another token"])
def test_tokens_that_do_not_fit_together_end_their_request_and_no_other(position: int, new: tuple[int, ...]):
    """Its client would wait for ever: what comes behind such tokens does not fit, either."""
    at = At()
    reader, other = at.ask(grace_s=5.0), at.ask(submit("t/other"))
    entry = reader.entry
    at.take(accepted(entry), accepted(other.entry))
    at.tokens(entry, 0, 5, 6)
    assert at.tokens(entry, position, *new) == 0
    at.read(reader)
    assert reader.is_told and isinstance(entry.failure, WorkFailed) and at.got == {0: [5, 6]}
    (cancel,) = [event for event in at.said if isinstance(event, Cancel)]
    assert cancel.route == entry.route and "did not fit together" in cancel.detail
    at.leave(reader)
    at.take(done(entry))
    assert at.wait(2.0) == [Closed("t/q", "a", entry.route)] and at.tokens(other.entry, 0, 5) == 1


def test_what_a_worker_could_not_go_on_with_is_a_failure_whoever_says_so():
    """The scheduler died before it had said so, and the next one knew no more than that all had ended."""
    at = At()
    reader = at.ask(submit(n=2))
    entry = reader.entry
    at.take(accepted(entry))
    at.tokens(entry, 0, 5, 6, reason=Reason.LENGTH)
    at.tokens(entry, 0, 7, index=1)
    at.tokens(entry, 1, index=1, reason=Reason.FAILED, detail="the step failed")
    assert entry.failure is None and at.take(done(entry)) == []
    at.read(reader)
    assert reader.is_told and isinstance(entry.failure, WorkFailed) and "the step failed" in str(entry.failure)
    at.leave(reader)
    assert at.wait(2.0) == [Closed("t/q", "a", entry.route)]
