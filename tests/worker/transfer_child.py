"""A worker in a process of its own, for tests that kill and stop it: `python -m tests.worker.transfer_child MODE`.

`steps` obeys one line at a time, so that a test can kill it in exactly the state that it wants. `storm` swaps blocks
out and back through a real agent and checks every byte until its input is closed; it exits with 3 if one was wrong.
"""

import json
import random
import sys
import threading
import time

import numpy as np

from cluster.messages import Road, Transfer, ids
from cluster.register.states import Carrier, Reservation, TransferKey, TransferName
from cluster.register.steps import Copied
from tests.worker.transfer_parts import CALL_S, SECURITY, WorkerPool, answers
from worker.transfer.checksum import memory_at
from worker.transfer.copy import block_rows
from worker.transfer.peer import PeerPool


def content(transfer: int, block: int, block_bytes: int) -> np.ndarray:
    """What a transfer writes to a host block: anybody can tell afterwards whether it is right."""
    return np.random.default_rng((transfer, block)).integers(0, 256, block_bytes, np.uint8)


class Steps:
    """One write through shared memory, a step at a time."""

    def __init__(self, address: str, block_bytes: int, caller: str, life: int) -> None:
        self.worker = WorkerPool(1, block_bytes, 0, name=caller, incarnation=life)
        self.peer = PeerPool("host-0", address, self.worker.end, SECURITY)
        self.peer.join(CALL_S)
        self.life = life
        self.scribbling = threading.Event()

    def reserve(self, transfer: str, timeout_s: str, *blocks: str) -> None:
        held = self.peer.memory(write=True)
        assert held is not None
        key = TransferKey(1, int(transfer), 0, self.worker.end.name)
        self.name = TransferName(key, self.life, self.peer.incarnation)
        self.blocks = np.array([int(block) for block in blocks], np.int32)
        self.rows = block_rows(held[0].address, self.worker.end.layout, self.blocks)
        asked = Reservation(
            self.name, True, self.worker.end.layout, self.blocks, Carrier.SHARED_MEMORY, float(timeout_s), held[1]
        )
        self.peer.reserve(asked, CALL_S)

    def copy(self, count: str) -> None:
        size = self.worker.end.layout.block_bytes
        for row, block in list(zip(self.rows.tolist(), self.blocks.tolist(), strict=True))[: int(count)]:
            memory_at(row, size)[:] = content(self.name.key.transfer, block, size)

    def sums(self, count: str) -> None:
        """Commits block by block: all but the last answer says what is still missing."""
        size = self.worker.end.layout.block_bytes
        filled = [content(self.name.key.transfer, block, size) for block in self.blocks.tolist()[: int(count)]]
        for place, data in enumerate(filled):
            self.worker.blocks[0] = data
            crcs = self.worker.end.pool.checksums(np.zeros(1, np.int32))
            first = place * self.worker.end.layout.chunks_per_block
            self.peer.commit(self.name, Copied(first, crcs), CALL_S)

    def commit(self) -> None:
        self.peer.commit(self.name, Copied(), CALL_S)

    def scribble(self) -> None:
        """Writes to its blocks all the time, as a copy does that was stopped in its middle and wakes up."""

        def write() -> None:
            number = 0
            while not self.scribbling.is_set():
                number += 1
                for row in self.rows.tolist():
                    memory_at(row, 64)[:] = number % 251

        self.writing = threading.Thread(target=write, daemon=True)
        self.writing.start()

    def rest(self) -> None:
        self.scribbling.set()
        self.writing.join()

    def abort(self) -> None:
        assert self.peer.abort(self.name, "the test says so", 10.0)


def steps(address: str, block_bytes: str, caller: str, life: str) -> int:
    made = Steps(address, int(block_bytes), caller, int(life))
    print("ready", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        getattr(made, word)(*rest)
        print(word, flush=True)
    return 0


def storm(pools: str, block_bytes: str, caller: str, life: str, first: str, count: str, seed: str) -> int:
    """`pools`: JSON with the pool's address and incarnation. Blocks `first` .. `first + count` are this one's."""
    told, size, number = json.loads(pools), int(block_bytes), int(life) * 1_000_000
    draw = random.Random(int(seed))
    worker = WorkerPool(2 * int(count), size, 0, name=caller, incarnation=int(life))
    agent = worker.agent({"host-0": told["address"]}, *[Carrier(value) for value in told["carriers"]])
    closed = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), closed.set()), daemon=True).start()
    print("ready", flush=True)
    done = {"written": 0, "read": 0, "failed": 0}
    # Told to end while it begins, it still writes once; whoever waits for it has a bound.
    while not (closed.is_set() and done["written"]):
        theirs = draw.sample(range(int(first), int(first) + int(count)), draw.randrange(1, int(count)))
        mine = list(range(len(theirs)))
        back = [place + int(count) for place in mine]
        number += 2
        for place, block in zip(mine, theirs, strict=True):
            worker.blocks[place] = content(number, block, size)
        agent.submit(Transfer(number, Road.WRITE, "host-0", told["incarnation"], ids(mine), ids(theirs), 1.5), 1)
        if not answers(agent, 1, 30.0)[0].ok:
            done["failed"] += 1
            time.sleep(0.05)
            continue
        done["written"] += 1
        agent.submit(Transfer(number + 1, Road.READ, "host-0", told["incarnation"], ids(back), ids(theirs), 1.5), 1)
        if not answers(agent, 1, 30.0)[0].ok:
            done["failed"] += 1
            continue
        done["read"] += 1
        if not np.array_equal(worker.blocks[back], worker.blocks[mine]):
            print(f"transfer {number}: wrong bytes came back", flush=True)
            return 3
    agent.close()
    worker.end.check()
    print(json.dumps(done), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit({"steps": steps, "storm": storm}[sys.argv[1]](*sys.argv[2:]))
