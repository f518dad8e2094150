"""The memory map as one watcher gets it: whole first, then what changed, with who holds each block where that is asked.

`AdminServer.WatchBlocks` makes one for each stream and asks it for news between two turns. It compares arrays, so that
a map of ten thousand blocks takes the scheduler's loop a fraction of a millisecond. It changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cluster.centre.ledger import Ledger
from cluster.centre.nouns import Request
from cluster.centre.scheduler import Scheduler
from protos.quire.v1 import admin_pb2 as pb

Owners = NDArray[np.int64]
Held: TypeAlias = Iterable[tuple[Request, Sequence[Iterable[int]]]]


class BlockWatch:
    """What one watcher was told last. `codes`: the byte of each state."""

    def __init__(self, scheduler: Scheduler, codes: Mapping[str, int], pools: Collection[str], owners: bool) -> None:
        self._scheduler = scheduler
        self._codes = codes
        self._wanted = set(pools)
        self._with_owners = owners
        self._known: dict[str, tuple[int, NDArray[np.uint8], Owners]] = {}
        # Requests by a number that is theirs for as long as the watch lasts.
        self._number_of: dict[str, int] = {}
        self._name_of: list[str] = [""]
        self._num_told = 0

    def news(self) -> pb.WatchBlocksResponse | None:
        """None: nothing has changed since the last message."""
        response = pb.WatchBlocksResponse(number=self._num_told)
        seen: dict[str, tuple[int, NDArray[np.uint8], Owners]] = {}
        for name, incarnation, ledger, requests in self._pools():
            states = np.frombuffer(ledger.states(self._codes), np.uint8)
            owners = self._owners(ledger, requests) if self._with_owners else np.zeros(0, np.int64)
            seen[name] = incarnation, states, owners
            self._add(response, name, seen[name], self._known.get(name))
        response.gone.extend(name for name in self._known if name not in seen)
        self._known = seen
        if not (response.pools or response.gone) and self._num_told:
            return None
        self._num_told += 1
        return response

    def _pools(self) -> Iterable[tuple[str, int, Ledger, Held]]:
        for replica in self._scheduler.replicas.values():
            if not self._wanted or replica.name in self._wanted:
                held = ((one, [sequence.table for sequence in one.sequences]) for one in replica.requests.values())
                yield replica.name, replica.incarnation, replica.ledger, held
        for host in self._scheduler.pools.values():
            if not self._wanted or host.name in self._wanted:
                kept = (
                    (one, [one.reserved, *(sequence.host_table for sequence in one.sequences)])
                    for one in host.requests.values()
                )
                yield host.name, host.incarnation, host.ledger, kept

    def _owners(self, ledger: Ledger, requests: Held) -> Owners:
        """The number of the request that holds each block; of a shared block, one of them."""
        owners = np.zeros(ledger.num_blocks, np.int64)
        for request, tables in requests:
            number = self._number_of.get(request.request_id)
            if number is None:
                number = self._number_of[request.request_id] = len(self._name_of)
                self._name_of.append(request.request_id)
            for table in tables:
                owners[list(table)] = number
        return owners

    def _add(
        self,
        response: pb.WatchBlocksResponse,
        name: str,
        now: tuple[int, NDArray[np.uint8], Owners],
        before: tuple[int, NDArray[np.uint8], Owners] | None,
    ) -> None:
        incarnation, states, owners = now
        part = pb.PoolMap(pool=name, incarnation=incarnation, num_blocks=len(states))
        if before is None or before[0] != incarnation:
            part.whole, part.states = True, states.tobytes()
        else:
            is_new = states != before[1]
            if self._with_owners:
                is_new |= owners != before[2]
            changed = np.flatnonzero(is_new)
            if not len(changed):
                return
            part.blocks.extend(changed.tolist())
            part.states = states[changed].tobytes()
            owners = owners[changed] if self._with_owners else owners
        if self._with_owners:
            numbers, places = np.unique(owners, return_inverse=True)
            # 0 is nobody; the others are named by their place in this message.
            shift = 0 if len(numbers) and numbers[0] == 0 else 1
            part.requests.extend(self._name_of[number] for number in numbers.tolist() if number)
            part.owners.extend((places + shift).tolist())
        response.pools.append(part)
