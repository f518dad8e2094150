"""Orders to the agent and their answers: every carrier, against a host pool that is a process of its own."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.messages import Road, Transfer, ids
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, Reservation, TransferKey, TransferName, layout_of
from cluster.register.steps import Copied
from tests.worker.transfer_parts import (
    CALL_S,
    SECURITY,
    PoolProcess,
    WorkerPool,
    answers,
    host_pool,
    num_descriptors,
    order,
    run,
    wait,
)
from worker.transfer.agent import TransferAgent
from worker.transfer.end import PoolEnd
from worker.transfer.peer import PeerPool
from worker.transfer.server import TransferServer

BLOCK_BYTES = 3 << 18  # 768 KiB, so that no chunk is a power of two
NUM_BLOCKS = 24
ODD_BYTES = (5 << 19) + 64  # three chunks a block, the last of 512 KiB and 64 bytes


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[PoolProcess]:
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as started:
        yield started


@pytest.fixture
def worker(seed: int) -> WorkerPool:
    return WorkerPool(NUM_BLOCKS, BLOCK_BYTES, seed)


@pytest.fixture(params=list(Carrier), ids=lambda carrier: carrier.name.lower())
def agent(request: pytest.FixtureRequest, pool: PoolProcess, worker: WorkerPool) -> Iterator[TransferAgent]:
    made = worker.agent({pool.name: pool.address}, request.param)
    yield made
    made.close()


@pytest.fixture
def any_agent(pool: PoolProcess, worker: WorkerPool) -> Iterator[TransferAgent]:
    made = worker.agent({pool.name: pool.address})
    yield made
    made.close()


def test_blocks_go_out_and_come_back_as_they_were(
    agent: TransferAgent, pool: PoolProcess, worker: WorkerPool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    before = worker.blocks.copy()
    mine, theirs = rng.permutation(NUM_BLOCKS)[:17].tolist(), rng.permutation(NUM_BLOCKS)[:17].tolist()
    out = run(agent, order(1, Road.WRITE, pool, mine, theirs))
    assert out.ok, out.detail
    assert (out.transfer, out.size_bytes) == (1, 17 * BLOCK_BYTES) and out.seconds > 0
    assert sorted(pool.committed()) == sorted(theirs)
    worker.blocks[:] = 0
    back = rng.permutation(NUM_BLOCKS)[:17].tolist()
    came = run(agent, order(2, Road.READ, pool, back, theirs))
    assert came.ok, came.detail
    assert np.array_equal(worker.blocks[back], before[mine])
    # What was not ordered was not touched.
    assert not worker.blocks[sorted(set(range(NUM_BLOCKS)) - set(back))].any()
    worker.end.check()


@pytest.mark.parametrize("carrier", list(Carrier))
def test_blocks_of_several_chunks_in_several_parts(carrier: Carrier, tmp_path: Path, seed: int) -> None:
    with host_pool(tmp_path, 8, ODD_BYTES) as pool:
        worker = WorkerPool(8, ODD_BYTES, seed)
        before = worker.blocks.copy()
        agent = worker.agent({pool.name: pool.address}, carrier, part_bytes=3 * ODD_BYTES)
        assert run(agent, order(1, Road.WRITE, pool, range(8), [3, 1, 4, 0, 5, 2, 6, 7])).ok
        worker.fill(seed + 1)
        assert run(agent, order(2, Road.READ, pool, range(8), [3, 1, 4, 0, 5, 2, 6, 7])).ok
        assert np.array_equal(worker.blocks, before)
        parts = 1 if carrier is Carrier.SHARED_MEMORY else 3
        ended = {(n, part): "COMMITTED" for n in (1, 2) for part in range(parts)}
        wait(lambda: pool.phases() == ended, "the peer is let go after the answer")
        agent.close()


def test_the_best_carrier_is_taken(any_agent: TransferAgent, pool: PoolProcess) -> None:
    assert run(any_agent, order(1, Road.WRITE, pool, [0], [0])).detail == "by shared memory"


def test_an_order_is_answered_once_however_often_it_comes(any_agent: TransferAgent, pool: PoolProcess) -> None:
    ordered = order(1, Road.WRITE, pool, [0, 1], [5, 6])
    for _ in range(3):
        any_agent.submit(ordered, 1)
    assert [answer.transfer for answer in answers(any_agent, 1)] == [1]
    any_agent.submit(ordered, 1)
    time.sleep(0.3)
    assert any_agent.take_answers() == []


def test_many_orders_at_once_are_all_answered(any_agent: TransferAgent, pool: PoolProcess, worker: WorkerPool) -> None:
    before = worker.blocks.copy()
    for block in range(NUM_BLOCKS):
        any_agent.submit(order(block + 1, Road.WRITE, pool, [block], [block]), 1)
    done = answers(any_agent, NUM_BLOCKS)
    assert sorted(answer.transfer for answer in done) == list(range(1, NUM_BLOCKS + 1))
    assert all(answer.ok for answer in done), done
    assert any_agent.under_way() == ()
    worker.blocks[:] = 0
    for block in range(NUM_BLOCKS):
        any_agent.submit(order(100 + block, Road.READ, pool, [block], [block]), 1)
    assert all(answer.ok for answer in answers(any_agent, NUM_BLOCKS))
    assert np.array_equal(worker.blocks, before)


def test_a_write_waits_for_a_reader_that_has_yet_to_let_go(any_agent: TransferAgent, pool: PoolProcess) -> None:
    """A read is answered once all of it is here; its peer hears a moment later that it may forget about it."""
    assert run(any_agent, order(1, Road.WRITE, pool, [0], [0])).ok
    reader = WorkerPool(1, BLOCK_BYTES, 0, name="reader")
    peer = PeerPool(pool.name, pool.address, reader.end, SECURITY)
    peer.join(CALL_S)
    name, blocks = (
        TransferName(TransferKey(1, 2, 0, "reader"), reader.end.incarnation, peer.incarnation),
        np.zeros(1, np.int32),
    )
    peer.reserve(Reservation(name, False, reader.end.layout, blocks, Carrier.STREAM, 30.0), CALL_S)
    any_agent.submit(order(3, Road.WRITE, pool, [2], [0]), 1)
    time.sleep(0.4)
    assert any_agent.take_answers() == [], "somebody reads the block"
    peer.commit(name, Copied(), CALL_S)
    (answer,) = answers(any_agent, 1)
    assert answer.ok, answer.detail
    peer.release()


def test_what_cannot_be_done_is_said_in_one_line(any_agent: TransferAgent, pool: PoolProcess) -> None:
    def failure(ordered: Transfer) -> str:
        answer = run(any_agent, ordered)
        assert not answer.ok and answer.size_bytes == 0
        return answer.detail

    assert "block 3 holds nothing committed (1 such)" in failure(order(1, Road.READ, pool, [0], [3]))
    assert failure(order(2, Road.WRITE, pool, [0], [99])).endswith(
        f"block 99 is outside the pool of {NUM_BLOCKS} blocks"
    )
    assert "1 blocks here against 2 there" in failure(order(3, Road.WRITE, pool, [0], [1, 2]))
    gone = Transfer(4, Road.WRITE, "nobody", 1, ids([0]), ids([0]), 5.0)
    assert failure(gone) == "write of 1 blocks to nobody: no address is known for nobody; there is host-0"
    older = Transfer(5, Road.WRITE, pool.name, pool.incarnation - 1, ids([0]), ids([0]), 5.0)
    assert f"incarnation {pool.incarnation} of host-0 is there, the order is for" in failure(older)
    assert pool.committed() == [] and pool.quarantined() == []


def test_another_layout_is_refused_with_the_figures(pool: PoolProcess, seed: int) -> None:
    other = WorkerPool(2, BLOCK_BYTES // 2, seed)
    agent = other.agent({pool.name: pool.address})
    answer = run(agent, order(1, Road.WRITE, pool, [0], [0]))
    agent.close()
    assert not answer.ok
    assert f"blocks of {BLOCK_BYTES // 2:,} bytes against {BLOCK_BYTES:,} here" in answer.detail


def test_a_peer_that_is_not_there_costs_no_more_than_the_timeout(worker: WorkerPool, pool: PoolProcess) -> None:
    agent = worker.agent({pool.name: "127.0.0.1:1"})
    began = time.monotonic()
    answer = run(agent, order(1, Road.WRITE, pool, [0], [0], timeout_s=1.0))
    assert not answer.ok and "not done within 1.0 s" in answer.detail
    assert time.monotonic() - began < 4
    agent.close()


def test_an_abort_ends_an_order_that_waits_and_one_that_runs(worker: WorkerPool, pool: PoolProcess) -> None:
    agent = worker.agent({pool.name: pool.address}, max_per_peer=1)
    assert run(agent, order(1, Road.WRITE, pool, [0], [0])).ok
    pool.stop()
    agent.submit(order(2, Road.WRITE, pool, [1], [1]), 1)
    agent.submit(order(3, Road.WRITE, pool, [2], [2]), 1)
    time.sleep(0.3)
    assert set(agent.under_way()) == {2, 3}
    agent.abort(3)
    agent.abort(2)
    ended = answers(agent, 2, timeout_s=8)
    pool.resume()
    assert {(answer.transfer, answer.ok) for answer in ended} == {(2, False), (3, False)}
    assert all("aborted by the scheduler" in answer.detail for answer in ended)
    # The pool hears of it once it runs again, whatever reached it before: nothing stays reserved.
    wait(lambda: set(pool.phases().values()) <= {"COMMITTED", "ABORTED"} and not pool.quarantined(), "settled")
    worker.end.check()
    agent.close()


def test_a_new_epoch_gives_up_what_an_older_one_ordered(any_agent: TransferAgent, pool: PoolProcess) -> None:
    pool.stop()
    any_agent.submit(order(1, Road.WRITE, pool, [0], [0]), 1)
    time.sleep(0.2)
    any_agent.adopt_epoch(2)
    any_agent.submit(order(2, Road.WRITE, pool, [1], [1]), 1)  # from a plan of the old one that came late
    ended = answers(any_agent, 2, timeout_s=8)
    pool.resume()
    assert [(answer.ok, "epoch 2 began" in answer.detail) for answer in ended] == [(False, True)] * 2
    assert run(any_agent, order(3, Road.WRITE, pool, [0], [0]), epoch=2).ok


def test_orders_wait_for_steps_that_still_write(
    any_agent: TransferAgent, pool: PoolProcess, worker: WorkerPool
) -> None:
    """`after` stands for the event of a GPU: what a step writes late is what is sent."""
    written = threading.Event()

    def after() -> None:
        assert written.wait(10)

    any_agent.submit(order(1, Road.WRITE, pool, [0], [0]), 1, after)
    time.sleep(0.2)
    assert any_agent.take_answers() == []
    worker.blocks[0] = 7
    written.set()
    assert answers(any_agent, 1)[0].ok
    assert run(any_agent, order(2, Road.READ, pool, [1], [0])).ok
    assert (worker.blocks[1] == 7).all()


def test_a_mistake_of_ours_is_an_answer_too(any_agent: TransferAgent, pool: PoolProcess) -> None:
    def after() -> None:
        raise ZeroDivisionError("of the test")

    any_agent.submit(order(1, Road.WRITE, pool, [0], [0]), 1, after)
    answer = answers(any_agent, 1)[0]
    assert not answer.ok and answer.detail == "write of 1 blocks to host-0: ZeroDivisionError: of the test"
    assert run(any_agent, order(2, Road.WRITE, pool, [0], [0])).ok


def test_a_pool_that_starts_again_is_another_one(tmp_path: Path, worker: WorkerPool) -> None:
    addresses: dict[str, str] = {}
    agent = worker.agent(addresses)
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as first:
        addresses[first.name] = first.address
        assert run(agent, order(1, Road.WRITE, first, [0, 1], [0, 1])).ok
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as second:
        addresses[second.name] = second.address
        assert second.incarnation > first.incarnation
        assert not run(agent, order(2, Road.READ, first, [0], [0])).ok
        assert "nothing committed" in run(agent, order(3, Road.READ, second, [0], [0])).detail
        assert run(agent, order(4, Road.WRITE, second, [0, 1], [0, 1])).ok
    agent.close()


@pytest.mark.parametrize("carrier", [Carrier.SOCKET, Carrier.STREAM])
def test_blocks_go_from_worker_to_worker(carrier: Carrier, seed: int) -> None:
    """Migration and prefix fetch: the other end is a worker's own pool, which serves it like a host pool."""
    here, there = WorkerPool(6, BLOCK_BYTES, seed), WorkerPool(6, BLOCK_BYTES, seed + 1, name="worker-1", incarnation=9)
    server = TransferServer(there.end, SECURITY)
    agent = here.agent({"worker-1": server.address}, carrier)
    wanted = there.blocks[4].copy()
    assert run(agent, Transfer(1, Road.WRITE, "worker-1", 9, ids([0, 5]), ids([2, 3]), 20.0)).ok
    assert np.array_equal(there.blocks[[2, 3]], here.blocks[[0, 5]])
    assert run(agent, Transfer(2, Road.READ, "worker-1", 9, ids([1]), ids([4]), 20.0)).ok
    assert np.array_equal(here.blocks[1], wanted)
    here.end.check()
    there.end.check()
    agent.close()
    server.close()


def test_nothing_leaks(pool: PoolProcess, worker: WorkerPool) -> None:
    """Agents and transfers come and go; descriptors and threads of both processes stay what they were."""

    def rounds(count: int) -> None:
        for number in range(count):
            for carrier in Carrier:
                agent = worker.agent({pool.name: pool.address}, carrier)
                epoch = pool.shown()["epoch"]
                first = 1000 * epoch + 10 * number + carrier.value
                assert run(agent, order(first * 2, Road.WRITE, pool, [0], [0]), epoch=epoch + 1).ok
                assert run(agent, order(first * 2 + 1, Road.READ, pool, [0], [0]), epoch=epoch + 1).ok
                agent.close()

    rounds(2)
    wait(lambda: True, "warm")
    before = num_descriptors(), threading.active_count()
    pool_before = num_descriptors(pool.pid)
    rounds(4)
    wait(
        lambda: (num_descriptors(), threading.active_count()) <= before, f"descriptors and threads as before: {before}"
    )
    # The pool keeps one descriptor per mapping for as long as the process that has it lives: this one.
    assert num_descriptors(pool.pid) - pool_before <= 4 + 2


def test_a_pool_that_its_owner_serves_alone_forgets_old_transfers() -> None:
    """No server ticks in a worker that serves nobody; the agent does it."""
    layout = layout_of("f", 64)
    register = Register(layout, 2, 1, RegisterSettings(remember_s=0.0), own_content=True)
    worker = WorkerPool(2, 64, 0)
    end = PoolEnd("worker-0", register, worker.end.pool)
    agent = TransferAgent(end, {}, SECURITY)
    for number in range(1, 4):
        agent.submit(Transfer(number, Road.WRITE, "nobody", 1, ids([0]), ids([0]), 0.1), 1)
    assert len(answers(agent, 3)) == 3
    assert list(end.register.transfers()) == []
    agent.close()
