"""A host pool in a process of its own that shows what it holds: `python -m tests.worker.pool_child OPTIONS`.

It is started as `python -m worker.host_pool` is. Each line of its input is answered with one line of JSON: how its
transfers and blocks stand. `epoch N` lets it hear of a scheduler of that epoch first. It ends with its input.
"""

import json
import signal
import sys
import threading

import numpy as np

from cluster.register.blocks import COMMITTED, QUARANTINED
from worker import host_pool


def shown(pool: host_pool.HostPoolServer) -> dict[str, object]:
    with pool.end.lock:
        register = pool.end.register
        register.check()
        return {
            "epoch": register.epoch,
            "committed": np.flatnonzero(register.blocks.states == COMMITTED).tolist(),
            "quarantined": np.flatnonzero(register.blocks.states == QUARANTINED).tolist(),
            "refused": {refusal.value: count for refusal, count in pool.end.refused.items()},
            "transfers": [
                {
                    "transfer": moving.key.transfer,
                    "part": moving.key.part,
                    "phase": moving.phase.name,
                    "write": moving.reservation.write,
                    "blocks": moving.reservation.blocks.tolist(),
                    "reason": moving.reason,
                    "quarantined": moving.quarantined,
                }
                for moving in register.transfers()
            ],
        }


def main() -> int:
    options = host_pool.parse(None)
    pool = host_pool.start(options)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())

    def answer() -> None:
        for line in sys.stdin:
            words = line.split()
            if words[0] == "epoch":
                pool.end.adopt_epoch(int(words[1]))
            print(json.dumps(shown(pool)), flush=True)
        ended.set()

    threading.Thread(target=answer, daemon=True).start()
    ended.wait()
    pool.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
