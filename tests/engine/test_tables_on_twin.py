"""Tables on a device are brought up to date by what is new in them, and are then those of the host."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.desk.batcher import Batch
from cluster.desk.rows import Rows
from kernels.device.seam import device_of, find_device
from kernels.device.twin.device import ORDER
from kernels.dispatch import backend
from tests.engine import models
from tests.engine.test_engine_on_twin import SETTINGS, WORK, _all_of, engine, written
from worker.batch import StepBuilder
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


def built(most_rows: int = 256) -> tuple[Rows, StepBuilder]:
    device = find_device("twin@0")
    rows = Rows(most_rows, 131_072, 16)
    return rows, StepBuilder(BatchState(rows, device), 4096, backend(device))


def step(builder: StepBuilder) -> None:
    """One token of the first row."""
    none = np.zeros(1, np.int32)
    builder.build(Batch(none, none, none + 1, 1, 1, 0), builder.state.known + 1)


def test_a_block_more_is_a_few_bytes() -> None:
    """256 tables of 128 K tokens, each of which gets a block: what is new goes along with the step's own bytes."""
    rows, builder = built()
    device, state = builder.state.device, builder.state
    for row in range(256):
        rows.extend(row, 0, np.arange(8000, dtype=np.int32))
    step(builder)
    before, launches = ORDER.num_bytes, ORDER.num_launches
    for row in range(256):
        rows.extend(row, 8000, np.array([9000 + row], np.int32))
    step(builder)
    assert ORDER.num_bytes - before < 256 * (8 + 6 * 8) + 1024
    assert ORDER.num_launches - launches == 2, "one copy, and one to put it in its place"
    with device_of(device).may_wait():
        assert state.device_tables[:, 8000].tolist() == list(range(9000, 9256))
        assert state.device_tables[3, :8000].tolist() == list(range(8000))


def test_a_step_that_failed_may_have_brought_nothing(seed: int) -> None:
    """What is new in tables was taken, and the copy of it never ran."""
    rows, builder = built(4)
    rng = np.random.default_rng(seed)
    for row in range(4):
        rows.extend(row, 0, rng.integers(1, 99, 50, np.int32))
    builder.state.take_changes()
    rows.extend(2, 50, np.array([7], np.int32))
    builder.state.doubt_tables()
    step(builder)
    with device_of(builder.state.device).may_wait():
        for row, count in enumerate(rows.num_blocks.tolist()):
            assert builder.state.device_tables[row, :count].tolist() == rows.tables[row, :count].tolist()


def test_a_step_that_fails_takes_nobody_elses_blocks_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is full for a moment. What was new in tables when the step began is told again by the next one."""
    folder = models.build(tmp_path, "llama", num_hidden_layers=2)
    work = [WORK[number] for number in (1, 2, 3, 4, 5, 8)]
    wanted = written(engine(folder, "cpu"), work)
    llm = engine(folder, "twin@0", prefix_caching=False)
    # Blocks hold what somebody else has left there, so that what is read in the wrong place is a number.
    llm._worker.parts.pool.bytes.zero_()
    send, num_sent = StepBuilder._send, [0]

    def failing(self: StepBuilder, num_tokens: int) -> None:
        num_sent[0] += 1
        if num_sent[0] in (1, 9):
            raise torch.OutOfMemoryError("the card is full")
        send(self, num_tokens)

    monkeypatch.setattr(StepBuilder, "_send", failing)
    results = llm.generate([prompt for _, prompt in work], [SETTINGS[name] for name, _ in work])
    failed = [bool(result.error) for result in results]
    assert True in failed and False in failed
    for (name, _), result in zip(work, results, strict=True):
        assert result.error or _all_of(result) == wanted[name], name
