"""The twin shows what would be wrong on a GPU: each test does one such thing and sees it, beside what is right."""

import gc

import numpy as np
import pytest
import torch

from kernels.device.seam import Device, device_of, find_device
from kernels.device.twin.device import ORDER, OrderFault, card
from kernels.device.twin.memory import OutOfMemory, PinnedMemory, pinned_array


@pytest.fixture
def twin() -> Device:
    """As late as can be."""
    device = device_of(find_device("twin@0"))
    device.bind()
    return device


@pytest.fixture
def other() -> Device:
    return device_of(find_device("twin:1"))


def numbers(twin: Device, count: int = 4) -> torch.Tensor:
    return twin.send(np.arange(count, dtype=np.float32))


def seen(twin: Device, tensor: torch.Tensor) -> list[float]:
    with twin.may_wait():
        return tensor.tolist()


def pinned(twin: Device, *values: float) -> torch.Tensor:
    return twin.pinned(len(values), torch.float32).copy_(torch.tensor(values))


def test_operations_are_late_and_right(twin: Device) -> None:
    x = numbers(twin)
    y = (x[1:] * 2 + 1).sum()
    assert card(0).steps.pending and not ORDER.capturing
    host = twin.fetch(y)
    assert torch.isnan(host), "what has not come yet can be told from what has"
    done = twin.event()
    done.record()
    done.wait()
    assert float(host) == 15.0
    assert seen(twin, y) == 15.0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: x.copy_(torch.zeros(4)),
        lambda x: x[torch.tensor([0, 1])],
    ],
)
def test_the_host_waits_only_where_it_may(twin: Device, ask: object) -> None:
    x = numbers(twin)
    with pytest.raises(OrderFault, match="makes the host wait"):
        ask(x)  # type: ignore[operator]
    with twin.may_wait():
        ask(x)  # type: ignore[operator]
    twin.wait()
    assert x.cpu().shape == (4,), "it has waited"


def test_a_copy_reads_the_host_when_it_is_done(twin: Device) -> None:
    host = pinned(twin, 1, 2)
    on = host.to(twin.device, non_blocking=True)
    sent = twin.event()
    sent.record()
    host.fill_(9)
    assert seen(twin, on) == [9, 9], "the copy was under way still"
    host.copy_(torch.tensor([1, 2]))
    on.copy_(host, non_blocking=True)
    sent.record()
    sent.wait()
    host.fill_(9)
    assert seen(twin, on) == [1, 2]


def test_streams_are_ordered_only_by_those_who_order_them(twin: Device) -> None:
    on, beside = torch.zeros(2, device=twin.device), twin.stream()
    twin.wait()
    on.add_(1)
    with twin.on(beside):
        host = twin.fetch(on)
    beside.wait()
    assert host.tolist() == [0, 0]
    beside.wait_for(twin.steps())
    with twin.on(beside):
        host = twin.fetch(on)
    beside.wait()
    assert host.tolist() == [1, 1]


def test_memory_that_nobody_holds_is_poisoned_in_its_streams_order(twin: Device) -> None:
    beside, on = twin.stream(), numbers(twin)
    twin.wait()
    with twin.on(beside):
        late = on * 2
    del on
    x = numbers(twin)
    twin.steps().wait()
    assert seen(twin, x) == [0, 1, 2, 3]
    with twin.on(beside):
        assert np.isnan(seen(twin, late)).all(), "it was let go of while another stream had not read it"
    assert np.isnan(seen(twin, torch.empty(3, device=twin.device))).all()
    assert seen(twin, torch.empty(1, dtype=torch.int64, device=twin.device))[0] > 1 << 60


def test_a_graph_does_again_what_was_issued_with_its_addresses_and_numbers(twin: Device) -> None:
    held, step = [numbers(twin)], 1
    graph, out = twin.graphs().capture(lambda: held[0] * 2 + step)
    assert np.isnan(seen(twin, out)).all(), "a capture does nothing"
    graph.replay()
    assert seen(twin, out) == [1, 3, 5, 7]
    step = 100
    held[0].add_(1)
    graph.replay()
    assert seen(twin, out) == [3, 5, 7, 9], "the number was baked in, the memory was not"
    held.clear()
    gc.collect()
    numbers(twin)
    graph.replay()
    assert np.isnan(seen(twin, out)).all(), "its input was let go of"


def test_graphs_of_one_pool_write_to_what_later_ones_left(twin: Device) -> None:
    x, pool = numbers(twin), twin.graphs()
    first, out = pool.capture(lambda: x + 1)
    second, behind = pool.capture(lambda: x + 2)
    second.replay()
    assert seen(twin, behind) == [2, 3, 4, 5]
    first.replay()
    assert seen(twin, out) == [1, 2, 3, 4]
    assert np.isnan(seen(twin, behind)).all()
    second.replay()
    assert seen(twin, out) == [1, 2, 3, 4] and seen(twin, behind) == [2, 3, 4, 5]


@pytest.mark.parametrize(
    "work",
    [
        lambda twin, x: x.sum().item(),
        lambda twin, x: twin.wait(),
        lambda twin, x: twin.pinned(4, torch.float32),
        lambda twin, x: twin.send(np.zeros(2)),
        lambda twin, x: twin.event().record(),
        lambda twin, x: twin.current().wait_for(twin.stream()),
        lambda twin, x: x.copy_(torch.zeros(4)),
        lambda twin, x: twin.graphs().capture(lambda: x + 1),
    ],
)
def test_a_capture_allows_no_wait_and_nothing_pinned(twin: Device, work: object) -> None:
    x = numbers(twin)
    with twin.may_wait(), pytest.raises(OrderFault):
        twin.graphs().capture(lambda: work(twin, x))  # type: ignore[operator]
    twin.graphs().capture(lambda: x + 1)


def test_host_memory_is_nothing_to_the_device(twin: Device) -> None:
    x = numbers(twin)
    assert seen(twin, x + torch.tensor(2.0)) == [2, 3, 4, 5], "a number goes along"
    with pytest.raises(OrderFault, match="host tensor"):
        x + torch.ones(4)
    with pytest.raises(OrderFault, match="host tensor"):
        twin.call(lambda a, b: a.add_(b), x, torch.ones(4))


def test_cards_are_apart(twin: Device, other: Device) -> None:
    x, y = numbers(twin), numbers(other)
    with pytest.raises(OrderFault, match="cards"):
        x + y
    assert seen(other, y * 2) == [0, 2, 4, 6], "torch's own operations follow their tensors"
    with pytest.raises(OrderFault, match="launched on card 0 with memory of card 1"):
        other.call(lambda a: a.add_(1), y)
    other.bind()
    other.call(lambda a: a.add_(1), y)
    assert seen(other, y) == [1, 2, 3, 4]


def test_what_is_lost_in_holes_is_not_free(twin: Device) -> None:
    twin.free_bytes()
    heap, mebibyte = card(0).heap, 1 << 20
    heap.total = heap.num_reserved + 64 * mebibyte
    try:
        parts = [torch.empty(5 * mebibyte, dtype=torch.uint8, device=twin.device) for _ in range(8)]
        del parts[1:4], parts[2:]
        assert twin.free_bytes() == 24 * mebibyte
        with pytest.raises(OutOfMemory, match="in one run"):
            torch.empty(25 * mebibyte, dtype=torch.uint8, device=twin.device)
        torch.empty(24 * mebibyte, dtype=torch.uint8, device=twin.device)
    finally:
        heap.total = None


def test_schedules_differ_and_each_is_the_same_again(twin: Device) -> None:
    def run(seed: int) -> list[str]:
        find_device(f"twin@{seed}")
        beside, found = twin.stream(), []
        on = torch.zeros((), device=twin.device)
        for _ in range(20):
            on.add_(1)
            with twin.on(beside):
                found.append(twin.fetch(on))
        beside.wait()
        return [str(one.item()) for one in found]

    runs = [run(seed) for seed in range(8)]
    assert runs == [run(seed) for seed in range(8)]
    assert runs[0] == ["nan"] * 20 and len({tuple(one) for one in runs}) > 4


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "twin:x", "cpu:1", "auto:1", "twin@x"])
def test_a_device_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        find_device(name)


def test_what_is_pinned_may_be_let_go_of_while_it_is_looked_at() -> None:
    """By a finaliser that runs on the thread that looks."""
    account = PinnedMemory()
    kept, array = pinned_array(account, 4096), pinned_array(account, 64)
    with account._account():
        del array
    assert account.num_bytes == kept.nbytes
