"""Whole blocks of a replica of several ranks, each of which holds its slice of every block: what transfers see of them.

A whole block is the slices of all ranks, one behind the other; its number is the same on all of them. Rank 0 alone
deals with other pools: it has one register, one name and one server for the replica, and copies whole blocks between
those pools and areas of memory that all ranks see. What moves between an area and its own pool each rank copies for
itself, when rank 0 asks it. A piece is settled when every rank has answered, so that nobody has to know of a slice
that is late; and as no other rank ever sees a peer's memory, what is proven of rank 0's process holds for all.
"""

from __future__ import annotations

import os
import queue
import secrets
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial

import numpy as np
import torch

from cluster.errors import TransferError, WorkFailed
from cluster.register.states import Blocks, PoolLayout, Sums, layout_of
from kernels.device.seam import Device, device_of
from worker.ranks.team import MOVE, Team, Words
from worker.transfer.bytes import BlockRows, Staged, Stop
from worker.transfer.checksum import Addresses
from worker.transfer.copy import Copier, CopyStopped, chunk_pieces
from worker.transfer.device import pool_bytes
from worker.transfer.handover import credentials_of
from worker.transfer.memory import SharedMemory

# One area is filled while another is emptied. Each holds at least one block, and no more than fit into one word.
_NUM_AREAS = 2
_AREA_BYTES = 16 << 20
_MOST_BLOCKS = 4096
# Which way a slice goes, seen from the rank's own pool.
_OUT, _IN = range(2)
_WORD_BYTES = 8 * (2 + _MOST_BLOCKS)
_DONE = b"done"
# Which rank comes for which area; how many bytes that area has.
_HELLO, _SIZE = struct.Struct("<2q"), struct.Struct("<q")
_COME_S = 60.0


class WholeBlocks:
    """See `PoolBytes`. Rank 0's."""

    def __init__(self, layout: PoolLayout, team: Team, pool: torch.Tensor) -> None:
        """`pool`: rank 0's slices, uint8 [num_blocks, bytes of a slice]. All other ranks are waiting for words."""
        slice_bytes = pool.shape[1]
        assert layout.block_bytes == team.size * slice_bytes, (layout.block_bytes, team.size, slice_bytes)
        self.layout = layout
        self.num_blocks = len(pool)
        # Nobody else can map memory in which whole blocks do not lie.
        self.shared: SharedMemory | None = None
        self.pins = False
        self._team = team
        self._seam = device_of(pool.device)
        # As many links as ranks bring bytes; on a CPU they all come from the same memory.
        self._copier = Copier(team.size if self._seam.is_apart else 1)
        self._own = _Slices(pool, team)
        self._most = max(1, min(_AREA_BYTES // layout.block_bytes, _MOST_BLOCKS))
        self._areas: queue.SimpleQueue[_Area] = queue.SimpleQueue()
        self._movers = ThreadPoolExecutor(_NUM_AREAS, "quire-areas")
        for area in _meet(team, self._most * layout.block_bytes):
            self._areas.put(area)

    def copy_out(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        return self._copy(_OUT, blocks, rows, stop)

    def copy_in(self, blocks: Blocks, rows: Addresses, stop: Stop | None) -> Sums:
        return self._copy(_IN, blocks, rows, stop)

    def checksums(self, blocks: Blocks) -> Sums:
        return self._copy(_OUT, blocks, None, None)

    def rows(self, blocks: Blocks, write: bool) -> BlockRows:
        memory = torch.empty(len(blocks) * self.layout.block_bytes, dtype=torch.uint8)
        places = memory.data_ptr() + np.arange(len(blocks), dtype=np.int64) * self.layout.block_bytes
        staged = Staged(self, blocks, places, memory)
        if not write:
            self.copy_out(blocks, staged.addresses, None)
        return staged

    # -- inside

    def _copy(self, way: int, blocks: Blocks, rows: Addresses | None, stop: Stop | None) -> Sums:
        """Between these blocks and `rows`, piece by piece; None: they are only summed. While ranks move one piece the
        one before or behind it is copied here, where another area is free."""
        found: list[Sums] = []
        # Pieces that ranks move, in order: through which area, and how it is summed and copied on from there.
        moving: deque[tuple[_Area, Future[None], Callable[[], Sums] | None]] = deque()
        held: list[_Area] = []

        def settle() -> None:
            area, moved, then = moving.popleft()
            moved.result()
            if then is not None:
                found.append(then())
            # Other transfers take turns.
            held.remove(area)
            self._areas.put(area)

        try:
            for first in range(0, len(blocks), self._most):
                while (area := self._area(waits=not moving)) is None:
                    settle()
                held.append(area)
                if stop is not None and stop():
                    raise CopyStopped
                piece = blocks[first : first + self._most]
                there = None if rows is None else rows[first : first + self._most]
                here = area.memory.address + np.arange(len(piece), dtype=np.int64) * self.layout.block_bytes
                then = partial(self._pass, here, there)
                if way == _IN:
                    assert there is not None
                    found.append(self._pass(there, here))
                moved = self._movers.submit(self._move, area, way, piece)
                moving.append((area, moved, then if way == _OUT else None))
            while moving:
                settle()
        finally:
            # However it ends: no area is anybody else's while a rank may touch it.
            wait([moved for _, moved, _ in moving])
            for area in held:
                self._areas.put(area)
        return np.concatenate(found)

    def _area(self, *, waits: bool) -> _Area | None:
        try:
            return self._areas.get(block=waits)
        except queue.Empty:
            return None

    def _pass(self, sources: Addresses, targets: Addresses | None) -> Sums:
        """Whole blocks from where they lie to where they go, if anywhere; their sums."""
        pieces, lengths = chunk_pieces(self.layout, sources)
        return self._copier.copy(None if targets is None else chunk_pieces(self.layout, targets)[0], pieces, lengths)

    def _move(self, area: _Area, way: int, blocks: Blocks) -> None:
        """Every rank copies its slices; all have answered when this is over, however it ends."""
        # Behind all steps and copies that they were told of before.
        word = np.array([way, self._team.num_said, *blocks], np.int64).tobytes()
        wrong = [area.ask(rank, word) for rank in area.ranks]
        try:
            self._own.move(area.memory, way, blocks)
        finally:
            wrong += [area.answer(rank, self._seam) for rank in area.ranks]
        problems = [problem for problem in wrong if problem]
        if problems:
            raise TransferError("; ".join(problems))

    def close(self) -> None:
        """No transfer runs any more."""
        self._copier.close()
        self._movers.shutdown()
        while not self._areas.empty():
            self._areas.get().close()


class _Area:
    """Memory that all ranks see, and a connection to each of the others for what happens to it."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory
        self.ranks: dict[int, socket.socket] = {}

    def ask(self, rank: int, word: bytes) -> str:
        """What is wrong, if anything."""
        try:
            self.ranks[rank].send(word)
        except OSError as error:
            return f"rank {rank} is gone: {error}"
        return ""

    def answer(self, rank: int, seam: Device) -> str:
        """What is wrong, if anything, once nothing of that rank's is under way."""
        connection = self.ranks[rank]
        came = select.poll()
        came.register(connection, select.POLLIN)
        seam.goes_on(lambda: bool(came.poll(0)))
        try:
            said = connection.recv(_WORD_BYTES)
        except OSError as error:
            return f"rank {rank} is gone: {error}"
        if not said:
            # Its process is dead or about to be: what it holds is nobody's any more.
            return f"rank {rank} is gone"
        return "" if said == _DONE else f"rank {rank}: {said.decode(errors='replace')}"

    def close(self) -> None:
        for connection in self.ranks.values():
            connection.close()
        self.memory.close()


def _meet(team: Team, size: int) -> list[_Area]:
    """Areas of `size` bytes, and all other ranks at them."""
    name = f"quire-ranks-{secrets.token_hex(12)}"
    areas = [_Area(SharedMemory.create("quire-ranks", size)) for _ in range(_NUM_AREAS)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as door:
        door.bind(f"\0{name}")
        door.listen(_NUM_AREAS * team.size)
        door.settimeout(_COME_S)
        team.say(MOVE, list(name.encode()))
        try:
            while any(len(area.ranks) < team.size - 1 for area in areas):
                peer, _ = door.accept()
                if credentials_of(peer)[1] != os.geteuid():
                    peer.close()
                    continue
                rank, number = _HELLO.unpack(peer.recv(_HELLO.size))
                socket.send_fds(peer, [_SIZE.pack(size)], [areas[number].memory.descriptor])
                areas[number].ranks[rank] = peer
        except OSError as error:
            raise WorkFailed(f"not all ranks came for the memory that blocks pass through: {error}") from error
    return areas


class _Slices:
    """A rank's own slices of blocks."""

    def __init__(self, pool: torch.Tensor, team: Team) -> None:
        # Rank 0 sums whole blocks.
        self._held = pool_bytes(layout_of("slice", pool.shape[1]), pool, Copier(), sums=False)
        self._rank, self._size = team.rank, team.size

    def move(self, memory: SharedMemory, way: int, blocks: Blocks) -> None:
        """Between the pool and an area. Nothing is under way when this is over, however it ends."""
        size = self._held.layout.block_bytes
        rows = memory.address + (np.arange(len(blocks), dtype=np.int64) * self._size + self._rank) * size
        if way == _OUT:
            self._held.copy_out(blocks, rows, None)
        else:
            self._held.copy_in(blocks, rows, None)


class MemberSlices:
    """Moves the slices of any rank but the first when rank 0 asks, beside its steps: on a thread for each area."""

    def __init__(self, pool: torch.Tensor, team: Team) -> None:
        """`pool`: this rank's slices."""
        self._pool = pool
        self._team = team
        self._obeyed = threading.Condition()
        self._num_obeyed = 0

    def obeyed(self) -> None:
        """One more word of rank 0 was carried out: what it wants of the device is issued."""
        with self._obeyed:
            self._num_obeyed += 1
            self._obeyed.notify_all()

    def _await(self, number: int) -> None:
        with self._obeyed:
            self._obeyed.wait_for(lambda: self._num_obeyed >= number)

    def join(self, words: list[Words]) -> None:
        """Comes for the areas, as `_meet` says."""
        name = bytes(words[0].astype(np.uint8)).decode()
        slices = _Slices(self._pool, self._team)
        for number in range(_NUM_AREAS):
            lead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            lead.connect(f"\0{name}")
            lead.send(_HELLO.pack(self._team.rank, number))
            told, descriptors, _, _ = socket.recv_fds(lead, _SIZE.size, 1)
            memory = SharedMemory(descriptors[0], _SIZE.unpack(told)[0], writable=True)
            serve = threading.Thread(target=self._serve, args=(lead, memory, slices), daemon=True)
            serve.name = f"quire-slices-{number}"
            serve.start()

    def _serve(self, lead: socket.socket, memory: SharedMemory, slices: _Slices) -> None:
        """Until rank 0 is gone."""
        try:
            while word := lead.recv(_WORD_BYTES):
                way, number, *blocks = np.frombuffer(word, np.int64).tolist()
                self._await(number)
                try:
                    slices.move(memory, way, np.array(blocks, np.int32))
                except Exception as error:
                    lead.send(" ".join(f"{type(error).__name__}: {error}".split()).encode()[:_WORD_BYTES])
                else:
                    lead.send(_DONE)
        except OSError:
            # It is gone in the middle of a word.
            pass
