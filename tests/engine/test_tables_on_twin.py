"""Tables on a device are brought up to date by what is new in them, and are then those of the host."""

import numpy as np

from cluster.desk.rows import Rows
from kernels.device.seam import device_of, find_device
from kernels.device.twin.device import ORDER
from worker.state import BatchState
from worker.tables import TableChanges


def test_a_copy_follows_by_what_is_new(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = Rows(5, 320, 8)
    changes, copy = TableChanges(rows), np.zeros((5, 40), np.int32)
    for _ in range(300):
        for row in rng.permutation(5)[: rng.integers(0, 4)].tolist():
            first = int(rng.integers(0, rows.num_blocks[row] + 1))
            rows.extend(row, first, rng.integers(0, 6, int(rng.integers(0, 41 - first)), np.int32))
        places, blocks = changes.take()
        assert (copy.reshape(-1)[places] != blocks).all(), "nothing is sent that is there"
        copy.reshape(-1)[places] = blocks
        for row, count in enumerate(rows.num_blocks.tolist()):
            assert (copy[row, :count] == rows.tables[row, :count]).all()


def test_a_block_more_is_a_few_bytes() -> None:
    """256 tables of 128 K tokens, each of which gets a block."""
    device = find_device("twin@0")
    rows = Rows(256, 131_072, 16)
    state = BatchState(rows, device)
    for row in range(256):
        rows.extend(row, 0, np.arange(8000, dtype=np.int32))
    state.sync_tables()
    before = ORDER.num_bytes
    for row in range(256):
        rows.extend(row, 8000, np.array([9000 + row], np.int32))
    state.sync_tables()
    assert ORDER.num_bytes - before == 256 * 12
    with device_of(device).may_wait():
        assert state.device_tables[:, 8000].tolist() == list(range(9000, 9256))
        assert state.device_tables[3, :8000].tolist() == list(range(8000))
