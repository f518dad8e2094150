"""What must hold of a desk after every call. Tests and the simulator ask; a violation is an AssertionError.

Rows: each is free or taken once. Tables: inside the pool, and long enough for every step that was issued and for every
lease. Sharing: a block that somebody will write stands in no other table, but for forks that wait for it to be
written. Groups: a purse holds no block of a table, and enough for the lease. Steps: what is under way is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cluster.desk.groups import BeamGroup
from cluster.desk.loops import GOES_ON
from cluster.desk.residence import DeskBooks
from cluster.desk.words import Flight


def check(books: DeskBooks, flights: Collection[Flight], leaving: Mapping[int, object]) -> None:
    _check_rows(books, flights, leaving)
    _check_positions(books)
    _check_tables(books)
    for group in books.groups.groups.values():
        _check_group(books, group)
    _check_names(books)


def _check_rows(books: DeskBooks, flights: Collection[Flight], leaving: Mapping[int, object]) -> None:
    rows, batcher = books.rows, books.batcher
    beams = [row for group in books.groups.groups.values() for row in group.rows[1:].tolist()]
    taken = [*rows.row_of.values(), *beams]
    assert sorted([*rows.free, *taken]) == list(range(rows.max_batch)), f"rows {rows.free} are free, {taken} taken"
    assert sorted(np.flatnonzero(batcher.resident).tolist()) == sorted(rows.row_of.values())
    for seq, row in rows.row_of.items():
        resident = rows.at(row)
        assert (resident.seq, resident.row) == (seq, row), f"row {row} of {seq} is held by {resident.seq}"
        for fork in resident.forks:
            assert rows.at(fork).parent == row and batcher.paused[fork], f"fork {fork} does not wait for row {row}"
    assert not (set(books.groups.groups) - set(rows.row_of.values())), "a group without its leader"
    in_flight = Counter(row for flight in flights for row in (*flight.batch.rows.tolist(), *flight.woken))
    for row in range(rows.max_batch):
        found = int(batcher.in_flight[row])
        assert found == in_flight[row], (
            f"{found} steps are under way with row {row}, and {in_flight[row]} were launched"
        )
        stops = row in leaving
        assert (rows.stopping[row] != GOES_ON) == stops, f"row {row} is on its way out, or it is not"
        assert not stops or batcher.paused[row], f"row {row} leaves and runs on"
    for flight in flights:
        for row, start in zip(flight.batch.rows.tolist(), flight.batch.starts.tolist(), strict=True):
            first = max(start, int(rows.write_from[row]))
            is_beam = rows.residents[row] is None
            assert is_beam or rows.written[row] <= first, (
                f"row {row}: {rows.written[row]} told as written, of which {first} are"
            )
        for row in flight.woken:
            assert rows.at(row).parent >= 0, f"fork {row} is told as written, and its prompt is under way"


def _check_positions(books: DeskBooks) -> None:
    rows, batcher = books.rows, books.batcher
    for row in rows.row_of.values():
        position, written = int(batcher.position[row]), int(rows.written[row])
        what = f"row {row} ({rows.at(row).seq})"
        stops = rows.stops[row]
        assert stops[stops >= 0].tolist() == list(rows.at(row).sampling.stop_ids), f"{what} stops at {stops}"
        assert position <= batcher.length[row], f"{what}: position {position} behind its length {batcher.length[row]}"
        assert rows.reported[row] <= written, f"{what}: {rows.reported[row]} positions told, {written} written"
        assert rows.reported_known[row] <= rows.known[row] <= rows.end[row], f"{what}: {rows.known[row]} tokens"
        assert rows.sent[row] <= rows.known[row], f"{what}: sent {rows.sent[row]} of {rows.known[row]} tokens"
        # A fork computes the last token of its prompt again, which stands written.
        assert written <= max(position, int(rows.write_from[row])), f"{what}: {written} written, {position} issued"
        # A group that goes on may come with a lease that ends where it stands.
        leased = max(int(batcher.lease_end[row]), int(rows.write_from[row]))
        assert position <= max(leased, int(rows.reported[row])), f"{what}: issued {position}, leased {leased}"


def _check_tables(books: DeskBooks) -> None:
    rows, batcher, size = books.rows, books.batcher, books.bounds.block_size
    tables: dict[int, list[int]] = {}
    holders: Counter[int] = Counter()
    beams = {row: group for group in books.groups.groups.values() for row in group.rows.tolist()}
    for row in [*rows.row_of.values(), *(row for row, group in beams.items() if row != group.leader)]:
        table = tables[row] = rows.table(row)
        wrong = books.bounds.alien(table)
        assert not wrong, f"row {row}: {wrong} in {table}"
        holders.update(table)
        if row not in beams:
            needed = max(int(batcher.lease_end[row]), int(batcher.position[row]))
            assert len(table) * size >= needed, f"row {row}: {len(table)} blocks for {needed} positions"
    for row, table in tables.items():
        resident = rows.residents[row]
        allowed: Counter[int] = Counter()
        for fork in resident.forks if resident is not None else ():
            # They wait for the parent to write their prompt's blocks.
            allowed.update(tables[fork][: rows.num_prompt[fork] // size])
        # Steps under way come first: a fork may go on behind the one that writes the prompt's last block.
        first = max(_first_written(books, row), 0 if row in beams else int(batcher.position[row]))
        for block in table[first // size :]:
            assert holders[block] == 1 + allowed[block], f"row {row} writes block {block}, which others hold too"


def _first_written(books: DeskBooks, row: int) -> int:
    """The next position that is not written yet, or may not be written by this row."""
    rows = books.rows
    if rows.residents[row] is None:
        # A beam: what it has not written yet is behind its leader's position.
        group = next(group for group in books.groups.groups.values() if row in group.rows)
        return int(rows.written[group.leader])
    return max(int(rows.written[row]), int(rows.write_from[row]))


def _check_group(books: DeskBooks, group: BeamGroup) -> None:
    rows, batcher, size = books.rows, books.batcher, books.bounds.block_size
    purse = Counter(group.purse)
    assert not purse or max(purse.values()) == 1, f"group {group.seq}: a block is in its purse twice: {group.purse}"
    members = group.rows.tolist()
    tables = [rows.table(row) for row in (members[:1] if group.is_at_prompt else members)]
    held = {block for table in tables for block in table}
    assert not held.intersection(purse), f"group {group.seq}: {held.intersection(purse)} are in tables and in its purse"
    assert len(held) + len(purse) == group.num_given, (
        f"group {group.seq}: {len(held)} blocks in tables and {len(purse)} in its purse, and {group.num_given} given"
    )
    if group.is_at_prompt:
        return
    counted = Counter(block for table in tables for block in table[group.num_shared :])
    for block in counted:
        assert books.groups.holders[block] == counted[block], f"group {group.seq}: holders of block {block}"
    position, lease_end = int(batcher.position[group.leader]), int(batcher.lease_end[group.leader])
    missing = max(0, -(-lease_end // size) - max(len(tables[0]), -(-position // size))) * len(members)
    assert len(purse) >= missing, f"group {group.seq}: a purse of {len(purse)} blocks, and {missing} are leased"


def _check_names(books: DeskBooks) -> None:
    rows, size = books.rows, books.bounds.block_size
    written: list[int] = []
    for row in rows.row_of.values():
        if row not in books.groups.groups:
            written += rows.table(row)[_first_written(books, row) // size :]
    for group in books.groups.groups.values():
        written += group.purse
    wrong: Sequence[int] = [block for block in written if block in books.names.known]
    assert not wrong, f"blocks {wrong} are named, and somebody will write into them"
