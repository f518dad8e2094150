"""Transfers of a pool on a GPU, where there is one; how neighbouring blocks become one copy, anywhere."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.messages import Road
from cluster.register.register import Register, RegisterSettings
from cluster.register.states import Carrier, layout_of
from kernels.device.seam import device_of, find_device
from kernels.device.twin.card import PINNED
from kernels.device.twin.device import TwinDevice
from tests.worker.transfer_parts import FINGERPRINT, SECURITY, PoolProcess, asking, host_pool, order, run
from worker.transfer.agent import TransferAgent
from worker.transfer.bytes import HostBytes
from worker.transfer.copy import Copier
from worker.transfer.device import pool_bytes, runs
from worker.transfer.end import PoolEnd
from worker.transfer.memory import SharedMemory

BLOCK_BYTES = (1 << 20) + 4096
NUM_BLOCKS = 40
ONLY_ON_GPUS = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_neighbours_on_both_sides_are_one_copy() -> None:
    blocks = np.array([4, 5, 6, 8, 9, 2], np.int32)
    rows = np.array([0, 100, 200, 300, 500, 600], np.int64)
    assert runs(blocks, rows, 100) == [(4, 0, 3), (8, 300, 1), (9, 500, 1), (2, 600, 1)]
    assert runs(blocks[:1], rows[:1], 100) == [(4, 0, 1)]


def test_runs_are_the_same_blocks_in_the_same_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(100):
        count = int(rng.integers(1, 30))
        blocks = rng.permutation(32)[:count].astype(np.int32)
        rows = 64 * rng.permutation(40)[:count].astype(np.int64)
        told = [(block + i, row + 64 * i) for block, row, n in runs(blocks, rows, 64) for i in range(n)]
        assert told == list(zip(blocks.tolist(), rows.tolist(), strict=True))


def test_a_pool_on_the_cpu_is_read_where_it_lies() -> None:
    pool = torch.zeros(4, 128, dtype=torch.uint8)
    assert isinstance(pool_bytes(layout_of("f", 128), pool, Copier()), HostBytes)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[PoolProcess]:
    with host_pool(tmp_path, NUM_BLOCKS, BLOCK_BYTES) as started:
        yield started


@pytest.fixture(params=["twin", pytest.param("cuda", marks=[pytest.mark.gpu, ONLY_ON_GPUS])])
def device(request: pytest.FixtureRequest, seed: int) -> torch.device:
    return find_device("cuda" if request.param == "cuda" else f"twin@{seed}")


def agent_of(blocks: torch.Tensor, pool: PoolProcess, carrier: Carrier) -> tuple[TransferAgent, PoolEnd]:
    """What moves blocks between a device's pool and `pool`."""
    layout = layout_of(FINGERPRINT, blocks.shape[1])
    register = Register(layout, len(blocks), 1, RegisterSettings(), own_content=True)
    end = PoolEnd("worker-0", register, pool_bytes(layout, blocks, Copier()))
    return TransferAgent(end, {pool.name: pool.address}, SECURITY, asking(carrier)), end


def test_blocks_that_end_inside_a_page_are_copied_from_pinned_memory(tmp_path: Path) -> None:
    """The system pins whole pages, each of them once."""
    size, device = (1 << 20) + 64, find_device("twin@0")
    blocks = torch.zeros(NUM_BLOCKS, size, dtype=torch.uint8, device=device)
    with host_pool(tmp_path, NUM_BLOCKS + 100, size) as pool:
        agent, _ = agent_of(blocks, pool, Carrier.SHARED_MEMORY)
        out = run(agent, order(1, Road.WRITE, pool, range(NUM_BLOCKS), range(100, 100 + NUM_BLOCKS)))
        assert out.ok, out.detail
        agent.close()


@pytest.mark.parametrize("carrier", list(Carrier))
def test_blocks_of_a_device_go_out_and_come_back(
    carrier: Carrier, pool: PoolProcess, device: torch.device, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    seam = device_of(device)
    before = torch.randint(0, 256, (NUM_BLOCKS, BLOCK_BYTES), dtype=torch.uint8)
    with seam.may_wait():
        blocks = before.to(device)
    agent, end = agent_of(blocks, pool, carrier)
    mine, theirs = rng.permutation(NUM_BLOCKS).tolist(), rng.permutation(NUM_BLOCKS).tolist()
    out = run(agent, order(1, Road.WRITE, pool, mine, theirs))
    assert out.ok, out.detail
    blocks.zero_()
    seam.wait()
    back = run(agent, order(2, Road.READ, pool, mine, theirs))
    assert back.ok, back.detail
    with seam.may_wait():
        assert torch.equal(blocks.cpu(), before)
    end.check()
    agent.close()


def test_copies_come_after_the_steps_that_wrote_what_they_read(pool: PoolProcess) -> None:
    """The agent waits for what the step loop has issued, and has pinned no more than what it copies."""
    device = find_device("twin@0")
    seam = device_of(device)
    blocks = torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device=device)
    agent, _ = agent_of(blocks, pool, Carrier.SHARED_MEMORY)
    blocks[3] += 7
    assert run(agent, order(1, Road.WRITE, pool, [3], [5])).ok
    assert PINNED.num_bytes < NUM_BLOCKS * BLOCK_BYTES, "all of the host's pool was pinned for one block"
    blocks[3] = 0
    assert run(agent, order(2, Road.READ, pool, [3], [5])).ok
    with seam.may_wait():
        assert blocks[3].cpu().eq(7).all() and not blocks[4].cpu().any()
    agent.close()


def test_memory_that_two_transfers_pin_at_once_is_pinned_no_more_when_it_is_closed() -> None:
    memory, seam, before = (
        SharedMemory.create("quire-test", 1 << 20),
        device_of(find_device("twin@0")),
        PINNED.num_bytes,
    )
    refused, one_is_done = threading.Event(), threading.Event()

    def pin(address: int, size: int) -> Callable[[], None] | None:
        unpin = seam.pin(address, size)
        if unpin is None:
            # The one who is refused is done last.
            refused.set()
            one_is_done.wait(10)
        else:
            refused.wait(0.5)
        return unpin

    def come() -> None:
        memory.pin(0, memory.size, pin)
        one_is_done.set()

    threads = [threading.Thread(target=come) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert PINNED.num_bytes == before + memory.size
    memory.close()
    assert PINNED.num_bytes == before


@pytest.mark.parametrize("carrier", [Carrier.SOCKET, Carrier.STREAM])
def test_staging_memory_is_pinned_a_piece_at_a_time(
    carrier: Carrier, pool: PoolProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once would stop steps, which need the driver too, for as long as that takes."""
    device, sizes = find_device("twin@0"), list[int]()
    pinned = TwinDevice.pinned

    def noted(self: TwinDevice, shape: int | tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        made = pinned(self, shape, dtype)
        sizes.append(made.nbytes)
        return made

    monkeypatch.setattr(TwinDevice, "pinned", noted)
    blocks = torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8, device=device)
    agent, _ = agent_of(blocks, pool, carrier)
    for number, road in enumerate((Road.WRITE, Road.READ)):
        assert run(agent, order(number + 1, road, pool, range(NUM_BLOCKS), range(NUM_BLOCKS))).ok
    assert sum(sizes) > 2 * NUM_BLOCKS * BLOCK_BYTES and max(sizes) <= 32 << 20
    agent.close()
