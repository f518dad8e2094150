"""The pure state machine of transfers: plain cases. Random ones are in test_transfer_register_model.py."""

import numpy as np

from cluster.register.blocks import COMMITTED, EMPTY, QUARANTINED, WRITING
from cluster.register.states import (
    Carrier,
    PoolLayout,
    TransferPhase,
    WhyRefused,
    layout_of,
)
from tests.register.parts import asked, fill, name, refused, register


def test_a_write_from_reservation_to_commit_to_read() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [4, 2]), b"", 0.0)
    assert made.blocks.states.tolist() == [EMPTY, EMPTY, WRITING, EMPTY, WRITING, EMPTY]
    with refused(WhyRefused.OCCUPIED, "block 2 is being written"):
        made.reserve(asked(name(2), [2], write=False), b"", 0.0)
    assert made.commit(name(1), 0.1).phase is TransferPhase.RESERVED  # nothing is here yet
    assert moving.missing(10) == [(0, 4)]
    # Block 4 is the first, so chunk 1 is its second half.
    assert made.number_of(moving, 4, 128, 128) == 1
    assert made.number_of(moving, 2, 0, 128) == 2
    made.begin_chunks(moving, 1, 1, 0.2)
    made.end_chunks(moving, 1, 1, 9, 0.2)
    assert moving.missing(10) == [(0, 1), (2, 2)] and moving.missing(1) == [(0, 1)]
    fill(made, moving, 0.3)
    assert made.commit(name(1), 0.4).phase is TransferPhase.COMMITTED
    assert made.commit(name(1), 0.5).phase is TransferPhase.COMMITTED
    assert made.blocks.crcs(np.array([4, 2], np.int32)).tolist() == [5, 9, 5, 5]  # type: ignore[union-attr]
    reading = made.reserve(asked(name(2), [2, 4], write=False), b"", 0.6)
    with refused(WhyRefused.BUSY, "is being read"):
        made.reserve(asked(name(3), [4]), b"", 0.6)
    made.commit(name(2), 0.7)
    assert reading.phase is TransferPhase.COMMITTED
    made.reserve(asked(name(3), [4]), b"", 0.8)
    made.check()


def test_what_is_not_committed_cannot_be_read_unless_the_steps_own_it() -> None:
    with refused(WhyRefused.UNREADABLE, "block 3 holds nothing committed"):
        register().reserve(asked(name(1), [3], write=False), b"", 0.0)
    assert register(own_content=True).reserve(asked(name(1), [3], write=False), b"", 0.0).live


def test_an_abort_frees_at_once_only_what_nobody_can_write() -> None:
    made = register()
    made.reserve(asked(name(1), [0]), b"", 0.0)
    shared = made.reserve(asked(name(2), [1], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.0)
    arriving = made.reserve(asked(name(3), [2]), b"", 0.0)
    made.begin_chunks(arriving, 0, 1, 0.1)
    for transfer in (1, 2, 3):
        made.abort(name(transfer), "test", False, 0.2)
    assert made.blocks.states[:3].tolist() == [EMPTY, QUARANTINED, QUARANTINED]
    made.reserve(asked(name(4), [0]), b"", 0.3)
    with refused(WhyRefused.QUARANTINED, "block 1 is in quarantine"):
        made.reserve(asked(name(5), [1]), b"", 0.3)
    with refused(WhyRefused.LATE):
        made.end_chunks(arriving, 0, 1, 9, 0.4)
    assert made.blocks.states[2] == EMPTY
    # A deadline that passes twice, a long time, another session's death: none is proof.
    made.expire(1e6)
    made.session_died(4, 1e6)
    assert shared.quarantined
    made.abort(name(2), "stopped at last", True, 1e6)
    assert made.blocks.states[1] == EMPTY
    made.check()


def test_a_dead_process_ends_its_transfers_and_their_quarantine() -> None:
    made = register()
    made.reserve(asked(name(1), [0], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.0)
    made.reserve(asked(name(2), [1], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.0)
    made.reserve(asked(name(3), [2], carrier=Carrier.SHARED_MEMORY, session=4), b"", 0.0)
    made.abort(name(1), "test", False, 0.1)
    made.session_died(3, 0.2)
    assert made.blocks.states[:3].tolist() == [EMPTY, EMPTY, WRITING]
    made.check()
    # What the dead one had asked for comes now: nobody would ever say that it has stopped.
    with refused(WhyRefused.STALE, "session 3 does not hold"):
        made.reserve(asked(name(4), [3], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.3)


def test_memory_is_reached_only_by_whom_it_was_given_to() -> None:
    made = register(own_content=True)
    made.session_began(5, "w", 1, write=False)
    for session, write, caller, life in ((5, True, "w", 1), (99, False, "w", 1), (3, True, "v", 1), (3, True, "w", 2)):
        with refused(WhyRefused.STALE, f"session {session} does not hold"):
            wanted = asked(name(1, caller=caller, life=life), [0], write, Carrier.SHARED_MEMORY, session=session)
            made.reserve(wanted, b"", 0.0)
    made = register(own_content=True)
    made.session_began(5, "w", 1, write=False)
    assert made.reserve(asked(name(1), [0], False, Carrier.SHARED_MEMORY, session=5), b"", 0.0).live


def test_deadlines_end_every_live_phase() -> None:
    made = register(idle_s=3.0)
    silent = made.reserve(asked(name(1), [0]), b"", 0.0)
    slow = made.reserve(asked(name(2), [1], timeout_s=8.0), b"", 0.0)
    shared = made.reserve(asked(name(3), [2], carrier=Carrier.SHARED_MEMORY, session=1, timeout_s=8.0), b"", 0.0)
    for now in (2.0, 4.0, 6.0):
        assert made.touch(slow, now)
        made.expire(now)
    assert silent.phase is TransferPhase.ABORTED and silent.reason == "nothing heard for 4.0 s"
    assert slow.live and shared.live
    made.expire(8.0)
    assert (slow.phase, shared.phase) == (TransferPhase.ABORTED, TransferPhase.ABORTED)
    assert slow.reason == "not committed within 8.0 s"
    assert not made.touch(slow, 8.1)
    made.check()


def test_messages_of_older_lives_are_stale() -> None:
    made = register()
    first = made.reserve(asked(name(1, life=4), [0]), b"", 0.0)
    with refused(WhyRefused.STALE, "incarnation 6 of this pool, 7 holds"):
        made.reserve(asked(name(2, pool=6), [1]), b"", 0.0)
    made.reserve(asked(name(2, life=5), [1]), b"", 0.0)
    assert first.phase is TransferPhase.ABORTED and first.reason == "incarnation 5 of w began"
    with refused(WhyRefused.STALE):
        made.find(name(1, life=4), 0.1)
    second = made.find(name(2, life=5), 0.1)
    made.adopt_epoch(9, 0.2)
    assert second.phase is TransferPhase.ABORTED
    with refused(WhyRefused.STALE, "epoch 9 holds"):
        made.commit(name(2, life=5), 0.3)
    # That it stopped is good to hear of an older life too.
    assert made.abort(name(2, life=5), "late", True, 0.4) is second


def test_an_epoch_keeps_what_was_committed_before() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [3]), b"", 0.0)
    fill(made, moving, 0.1)
    made.commit(name(1), 0.2)
    made.adopt_epoch(2, 0.3)
    assert made.blocks.states.tolist() == [EMPTY, EMPTY, EMPTY, COMMITTED, EMPTY, EMPTY]
    assert made.reserve(asked(name(1, epoch=2), [3], write=False), b"", 0.4).live


def test_chunks_that_are_wrong_are_refused() -> None:
    made = register()
    moving = made.reserve(asked(name(1), [5]), b"", 0.0)
    for block, offset, length, why in (
        (5, 0, 127, WhyRefused.TRUNCATED),
        (5, 64, 128, WhyRefused.OUTSIDE),
        (5, 256, 128, WhyRefused.OUTSIDE),
        (4, 0, 128, WhyRefused.OUTSIDE),
    ):
        with refused(why):
            made.number_of(moving, block, offset, length)
    made.begin_chunks(moving, 0, 1, 0.1)
    with refused(WhyRefused.DOUBLED):
        made.begin_chunks(moving, 0, 1, 0.1)
    made.end_chunks(moving, 0, 1, None, 0.2)  # corrupt: missing again
    made.begin_chunks(moving, 0, 1, 0.3)
    made.end_chunks(moving, 0, 1, 9, 0.3)
    with refused(WhyRefused.DOUBLED):
        made.begin_chunks(moving, 0, 1, 0.4)
    with refused(WhyRefused.OUTSIDE):
        made.begin_chunks(moving, 1, 2, 0.4)
    with refused(WhyRefused.UNKNOWN):
        made.find(name(99), 0.5)


def test_reservations_that_cannot_be() -> None:
    made = register(max_bytes_per_caller=600)
    for blocks, why in (
        ([], WhyRefused.OUTSIDE),
        ([6], WhyRefused.OUTSIDE),
        ([-1], WhyRefused.OUTSIDE),
        ([1, 1], WhyRefused.OUTSIDE),
    ):
        with refused(why):
            made.reserve(asked(name(1), blocks), b"", 0.0)
    with refused(WhyRefused.LAYOUT, "w has blocks of 512 bytes against 256 here"):
        made.reserve(asked(name(1), [0], layout=PoolLayout("f", 512, 128)), b"", 0.0)
    with refused(WhyRefused.LAYOUT, "laid out as g against f"):
        made.reserve(asked(name(1), [0], layout=PoolLayout("g", 256, 128)), b"", 0.0)
    # One that is larger than the bound goes when it is alone; another caller is not hindered.
    made.reserve(asked(name(1), [0, 1, 2]), b"", 0.0)
    with refused(WhyRefused.BUSY, "768 bytes under way and asks for 256 more; 600 is the most"):
        made.reserve(asked(name(2), [3]), b"", 0.0)
    made.reserve(asked(name(2, caller="v"), [3]), b"", 0.0)
    made.abort(name(1), "", True, 0.1)
    made.reserve(asked(name(2), [0]), b"", 0.2)


def test_repetitions_get_the_same_answer() -> None:
    made = register()
    first = made.reserve(asked(name(1), [0, 1]), b"", 0.0)
    assert made.reserve(asked(name(1), [0, 1]), b"", 0.1) is first
    with refused(WhyRefused.CONFLICT):
        made.reserve(asked(name(1), [0, 2]), b"", 0.1)
    for otherwise in ({"write": False}, {"carrier": Carrier.STREAM}, {"session": 3}):
        with refused(WhyRefused.CONFLICT, "with other blocks or another way"):
            made.reserve(asked(name(1), [0, 1], **otherwise), b"", 0.1)
    made.abort(name(1), "enough", True, 0.2)
    with refused(WhyRefused.LATE, "was given up: enough"):
        made.reserve(asked(name(1), [0, 1]), b"", 0.3)
    # An abort that overtakes its reservation.
    assert made.abort(name(2), "early", True, 0.4) is None
    with refused(WhyRefused.LATE):
        made.reserve(asked(name(2), [0]), b"", 0.5)
    made.give_up(1, 3, 0.6)
    with refused(WhyRefused.LATE):
        made.reserve(asked(name(3), [0]), b"", 0.7)
    # Ends are remembered for a while, and then forgotten.
    made.expire(200.0)
    assert list(made.transfers()) == []


def test_a_reservation_that_was_held_up_does_not_push_out_newer_content() -> None:
    made = register()
    moving = made.reserve(asked(name(8), [0]), b"", 0.0)
    fill(made, moving, 0.1)
    made.commit(name(8), 0.1)
    with refused(WhyRefused.STALE, "holds what a newer transfer wrote"):
        made.reserve(asked(name(5), [0]), b"", 0.2)
    assert made.blocks.states[0] == COMMITTED
    made.reserve(asked(name(9), [0]), b"", 0.3)
    made.abort(name(9), "", True, 0.4)
    assert made.blocks.states[0] == EMPTY  # half overwritten, so nothing


def test_what_is_settled_is_told_once_and_only_when_nothing_can_touch_the_pool() -> None:
    made = register()
    # One that never came here, a write that was given up by its caller, and one whose caller is still at large.
    made.give_up(1, 9, 0.0)
    made.reserve(asked(name(1), [0]), b"", 0.0)
    made.abort(name(1), "enough", True, 0.1)
    made.reserve(asked(name(2), [1], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.1)
    made.reserve(asked(name(2, part=1), [2], carrier=Carrier.SHARED_MEMORY, session=3), b"", 0.1)
    made.give_up(1, 2, 0.2)
    assert made.take_settled() == [9, 1]
    assert made.take_settled() == []
    made.abort(name(2), "stopped", True, 0.3)
    assert made.take_settled() == [], "its other part can be written still"
    made.abort(name(2, part=1), "stopped", True, 0.4)
    assert made.take_settled() == [2]
    # Asked again, it is told again; what was read or committed is never told.
    made.give_up(1, 2, 0.5)
    assert made.take_settled() == [2]
    moving = made.reserve(asked(name(3), [3]), b"", 0.6)
    fill(made, moving, 0.6)
    made.commit(name(3), 0.6)
    made.reserve(asked(name(4), [3], write=False), b"", 0.7)
    made.abort(name(4), "", True, 0.8)
    assert made.take_settled() == []
    made.check()


def test_bytes_go_only_the_way_that_was_reserved() -> None:
    made = register()
    made.reserve(asked(name(1), [0], carrier=Carrier.SHARED_MEMORY, session=1), b"", 0.0)
    made.reserve(asked(name(2), [1], carrier=Carrier.SOCKET), b"", 0.0)
    assert made.live_by(name(1), True, (Carrier.SHARED_MEMORY,), 0.1).live
    assert made.live_by(name(2), None, (Carrier.SOCKET,), 0.1).live
    for named, write, carrier in (
        (name(1), True, Carrier.STREAM),
        (name(1), False, Carrier.SHARED_MEMORY),
        (name(2), True, Carrier.STREAM),
        (name(2), None, Carrier.SHARED_MEMORY),
    ):
        with refused(WhyRefused.CONFLICT, "and by nothing else"):
            made.live_by(named, write, (carrier,), 0.1)


def test_all_that_is_kept_has_a_bound() -> None:
    made = register(max_remembered=8, max_live=3, max_live_per_caller=2)
    for number in range(1, 40):
        made.abort(name(number), "x", True, 0.0)
        made.give_up(1, number + 100, 0.0)
    for number in range(1, 40):
        made.reserve(asked(name(1000 + number, caller=f"c{number}"), [0], write=True), b"", 0.0)
        made.abort(name(1000 + number, caller=f"c{number}"), "", True, 0.0)
    made.check()
    assert len(list(made.transfers())) <= 8
    assert len(made.take_settled()) == 8
    made.reserve(asked(name(2001), [0]), b"", 0.0)
    made.reserve(asked(name(2002), [1]), b"", 0.0)
    with refused(WhyRefused.BUSY, "2 transfers are under way, 2 of w; at most 3 can be, 2 of one"):
        made.reserve(asked(name(2003), [2]), b"", 0.0)
    made.reserve(asked(name(2003, caller="v"), [2]), b"", 0.0)
    with refused(WhyRefused.BUSY):
        made.reserve(asked(name(2004, caller="u"), [3]), b"", 0.0)


def test_chunks_of_a_layout() -> None:
    assert layout_of("f", 16_384).chunks_per_block == 1
    large = layout_of("f", (5 << 19))
    assert (large.chunk_bytes, large.chunks_per_block, large.length(2)) == (1 << 20, 3, 1 << 19)
