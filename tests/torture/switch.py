"""A switch of network cables in a process of its own: frames between two ports are delayed, lost, or none passes.

`python -m tests.torture.switch PORT ...` with the names of interfaces; each line of its input is a rule for one
direction, `FROM TO DELAY_S LOSS` by number, and a loss of 1 is a cable that is cut there. It ends with its input. What
netem does in a kernel that has it, without that.
"""

from __future__ import annotations

import heapq
import os
import random
import select
import socket
import sys
import time

ETH_P_ALL = 3
_OUTGOING = 4
FRAME_BYTES = 1 << 16


def main(names: list[str]) -> None:
    sockets = []
    for name in names:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        one.bind((name, ETH_P_ALL))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        one.setblocking(False)
        sockets.append(one)
    rules: dict[tuple[int, int], tuple[float, float]] = {}
    # The last byte of an address says at which port it is.
    waiting: list[tuple[float, int, int, bytes]] = []
    random_, number = random.Random(1), 0
    poll = select.poll()
    poll.register(0, select.POLLIN)
    for one in sockets:
        poll.register(one, select.POLLIN)
    by_descriptor = {one.fileno(): at for at, one in enumerate(sockets)}
    print("ready", flush=True)
    while True:
        timeout_ms = None if not waiting else max(0.0, 1000 * (waiting[0][0] - time.monotonic()))
        for descriptor, _ in poll.poll(timeout_ms):
            if descriptor == 0:
                words = os.read(0, 1 << 16)
                if not words:
                    return
                for line in words.decode().splitlines():
                    source, target, delay_s, loss = line.split()
                    rules[int(source), int(target)] = float(delay_s), float(loss)
                continue
            source = by_descriptor[descriptor]
            for _ in range(64):
                try:
                    frame, about = sockets[source].recvfrom(FRAME_BYTES)
                except BlockingIOError:
                    break
                if about[2] == _OUTGOING:
                    continue
                targets = [frame[5]] if frame[:5] == b"\x02\0\0\0\0" else range(len(sockets))
                for target in targets:
                    delay_s, loss = rules.get((source, target), (0.0, 0.0))
                    if target == source or target >= len(sockets) or random_.random() < loss:
                        continue
                    number += 1
                    heapq.heappush(waiting, (time.monotonic() + delay_s, number, target, frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, target, frame = heapq.heappop(waiting)
            try:
                sockets[target].send(frame)
            except OSError:
                continue  # its buffer is full, or it is going


if __name__ == "__main__":
    main(sys.argv[1:])
