"""Blocks of which each rank of a replica holds a slice, moved as whole ones: ranks and host pool are real processes, on
the CPU and on the twin, each rank with a card of its own."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.messages import Road
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, layout_of
from kernels.device.seam import device_of, find_device
from tests.worker.slices_child import slices_of
from tests.worker.transfer_parts import FINGERPRINT, ROOT, SECURITY, answers, asking, host_pool, order, run, wait
from worker.ranks.blocks import WholeBlocks
from worker.ranks.team import CLEAR, STEP, RankPlace, Team
from worker.transfer.agent import TransferAgent
from worker.transfer.end import PoolEnd

NUM_RANKS, NUM_BLOCKS, SLICE_BYTES = 3, 24, (1 << 19) + 64
BLOCK_BYTES = NUM_RANKS * SLICE_BYTES


class Ranks:
    """Rank 0 here, the others as processes; what rank 0's transfers see is `end`."""

    def __init__(self, folder: Path, device: str) -> None:
        kind, at, schedule = device.partition("@")
        meeting = f"file://{folder}/meeting"
        self.children = []
        for rank in range(1, NUM_RANKS):
            card = device if kind == "cpu" else f"{kind}:{rank}{at}{schedule}"
            about = [str(number) for number in (rank, NUM_RANKS, meeting, card, NUM_BLOCKS, SLICE_BYTES)]
            self.children.append(
                subprocess.Popen([sys.executable, "-m", "tests.worker.slices_child", *about], cwd=ROOT)
            )
        found = find_device(device)
        self.seam = device_of(found)
        self.seam.bind()
        self.team = Team(RankPlace(0, NUM_RANKS, meeting), found)
        with self.seam.may_wait():
            self.pool = slices_of(0, NUM_BLOCKS, SLICE_BYTES).to(found)
        layout = layout_of(FINGERPRINT, BLOCK_BYTES)
        self.whole = WholeBlocks(layout, self.team, self.pool)
        register = Register(layout, NUM_BLOCKS, 1, RegisterSettings(), own_content=True)
        self.end = PoolEnd("worker-0", register, self.whole)

    def read(self) -> np.ndarray:
        """All blocks, whole."""
        found = np.zeros((NUM_BLOCKS, BLOCK_BYTES), np.uint8)
        blocks = np.arange(NUM_BLOCKS, dtype=np.int32)
        self.whole.copy_out(blocks, found.ctypes.data + blocks.astype(np.int64) * BLOCK_BYTES, None)
        return found

    def step(self, milliseconds: int, number: int) -> None:
        self.team.say(STEP, [milliseconds], [number])
        self.pool.add_(number)

    def clear(self) -> None:
        self.team.say(CLEAR)
        self.pool.zero_()

    def close(self) -> None:
        self.whole.close()
        self.team.close()
        for child in self.children:
            child.kill()
            child.wait(10)


@pytest.fixture(scope="module", params=["cpu", "twin@0", "twin@3"])
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    made = Ranks(tmp_path_factory.mktemp("ranks"), request.param)
    yield made
    made.close()


def wanted() -> np.ndarray:
    return torch.cat([slices_of(rank, NUM_BLOCKS, SLICE_BYTES) for rank in range(NUM_RANKS)], 1).numpy()


def test_whole_blocks_go_out_and_come_back_by_every_carrier(ranks: Ranks, tmp_path: Path, seed: int) -> None:
    assert np.array_equal(ranks.read(), wanted())
    rng = np.random.default_rng(seed)
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as pool:
        for number, carrier in enumerate(Carrier):
            agent = TransferAgent(ranks.end, {pool.name: pool.address}, SECURITY, asking(carrier))
            mine, theirs = (rng.permutation(NUM_BLOCKS).tolist() for _ in range(2))
            out = run(agent, order(2 * number + 1, Road.WRITE, pool, mine, theirs))
            assert out.ok, out.detail
            ranks.clear()
            assert not ranks.read().any()
            back = run(agent, order(2 * number + 2, Road.READ, pool, mine, theirs))
            assert back.ok, back.detail
            assert np.array_equal(ranks.read(), wanted()), carrier
            agent.close()
    ranks.end.check()


@pytest.mark.parametrize("road", [Road.WRITE, Road.READ])
def test_ranks_move_a_piece_while_another_is_copied(
    ranks: Ranks, road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes first of a piece of its two ways begins before what comes last of the piece before it is over."""
    whole, num_pieces, came = ranks.whole, 3, list[bool]()
    began = [threading.Event() for _ in range(num_pieces)]
    first, last = ("_move", "_pass") if road is Road.WRITE else ("_pass", "_move")
    firsts, lasts = itertools.count(), itertools.count()

    def noted(way: Any) -> Any:
        def begin(*args: Any) -> Any:
            began[next(firsts)].set()
            return way(*args)

        return begin

    def waiting(way: Any) -> Any:
        def end(*args: Any) -> Any:
            behind = next(lasts) + 1
            came.append(behind == num_pieces or began[behind].wait(20))
            return way(*args)

        return end

    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as pool:
        agent = TransferAgent(ranks.end, {pool.name: pool.address}, SECURITY, asking(Carrier.SHARED_MEMORY))
        assert run(agent, order(100 * road + 1, Road.WRITE, pool, range(NUM_BLOCKS), range(NUM_BLOCKS))).ok
        before = ranks.read()
        with monkeypatch.context() as patch:
            patch.setattr(whole, first, noted(getattr(whole, first)))
            patch.setattr(whole, last, waiting(getattr(whole, last)))
            assert run(agent, order(100 * road + 2, road, pool, range(NUM_BLOCKS), range(NUM_BLOCKS))).ok
        assert came == [True] * num_pieces and np.array_equal(ranks.read(), before)
        agent.close()


def test_many_transfers_at_once_share_the_areas(ranks: Ranks) -> None:
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(ranks.read())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4 and all(np.array_equal(one, wanted()) for one in found)


def test_a_slice_goes_out_behind_the_steps_that_were_said_before(ranks: Ranks) -> None:
    """Some ranks are late: what they were told to do comes first all the same, and so does what lies in between."""
    expected = ranks.read()
    for number in range(4):
        ranks.step(50, number + 1)
        expected += np.uint8(number + 1)
        assert np.array_equal(ranks.read(), expected)


def test_a_rank_that_dies_in_a_transfer_fails_it_and_leaves_nothing(ranks: Ranks, tmp_path: Path) -> None:
    """The last of these: one rank is gone for good."""
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as pool:
        agent = TransferAgent(ranks.end, {pool.name: pool.address}, SECURITY, asking())
        assert run(agent, order(11, Road.WRITE, pool, range(5), range(5))).ok
        # The others are busy when it is asked, and one of them will never be done.
        ranks.team.say(STEP, [1000], [0])
        agent.submit(order(12, Road.WRITE, pool, range(10, 15), range(5, 10)), 1)
        wait(agent.under_way, "the transfer runs")
        ranks.children[-1].kill()
        (told,) = answers(agent, 1)
        assert not told.ok and "rank 2 is gone" in told.detail, told
        back = run(agent, order(13, Road.READ, pool, range(10, 15), range(5)))
        assert not back.ok and "rank 2 is gone" in back.detail, back
        # What was not reached is as it was, and may be used.
        assert pool.committed() == [0, 1, 2, 3, 4] and pool.quarantined() == []
        ranks.end.check()
        agent.close()
