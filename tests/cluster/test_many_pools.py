"""A thousand pools: costs do not grow with their number, and a search by figures finds what looking at all finds."""

from __future__ import annotations

from cluster.bench.many_pools import admission_ms, fill_first, join_bytes, new_cluster, preemption_ms, transfer_us


def test_a_target_is_found_by_figures_as_by_looking_at_every_replica() -> None:
    scheduler = new_cluster(20)
    fill_first(scheduler)
    taken: dict[str, list[int]] = {}
    for number, replica in enumerate(scheduler.replicas.values()):
        blocks = replica.ledger.allocate(replica.ledger.num_available * (1 + number % 7) // 8, 7)
        assert blocks is not None
        taken[replica.name] = blocks
        scheduler.boards.refresh(replica)
    # It has the most at hand since, and the board does not know that yet.
    late = scheduler.replicas["r13"]
    late.ledger.release(taken["r13"], 7)
    late.write()
    request = next(iter(scheduler.replicas["r0"].requests.values()))
    fits = list(scheduler.movable.with_room(request, scheduler.replicas.values()))
    board = scheduler.boards.of("m")
    expected = max(fits, key=lambda replica: replica.ledger.num_available / replica.ledger.num_blocks)
    found = board.roomiest(
        lambda replicas: scheduler.movable.with_room(request, replicas),
        scheduler.movable.need(request),
        scheduler.books.touched,
    )
    assert len(fits) > 10 and found is expected is late


def test_costs_do_not_grow_with_the_number_of_pools() -> None:
    """At 20 times as many pools a cost that grows with them would be 20 times as high; 6 leaves room for noise."""
    assert admission_ms(400) <= 6 * admission_ms(20)
    assert preemption_ms(400) <= 6 * preemption_ms(20)
    assert transfer_us(1000) <= 6 * transfer_us(50)
    assert join_bytes(1000) <= 100_000
