"""Memory comes and goes: replicas and host pools that join, drain, are expelled or lost, and models that are closed.

Nothing that was accepted is lost and nothing that was sent changes. What ran on a lost replica is sealed, and starts
again from what its gateways have. Ended requests are kept until their gateway says Closed, because their last tokens
may have died with their worker. Only the highest incarnation of each process counts.
"""

from __future__ import annotations

from cluster.centre.boards import Boards
from cluster.centre.books import Books
from cluster.centre.endings import Endings
from cluster.centre.host_memory import HostMemory
from cluster.centre.leaving import Leaving
from cluster.centre.ledger import Ledger
from cluster.centre.nouns import HostPool, Replica, Request, State
from cluster.centre.residents import new_replica
from cluster.centre.roads import Roads
from cluster.centre.sealing import Sealing
from cluster.centre.transfers import Transfers
from cluster.centre.waiting import Waiting
from cluster.messages import (
    CloseModel,
    Drain,
    Expel,
    HostPoolJoined,
    HostPoolLost,
    Reason,
    ReplicaJoined,
    ReplicaLost,
    TurnAway,
)


class Recovery:
    """Tells every rule what is gone, in the order in which they must hear it."""

    def __init__(
        self,
        books: Books,
        boards: Boards,
        waiting: Waiting,
        transfers: Transfers,
        host_memory: HostMemory,
        endings: Endings,
        sealing: Sealing,
        leaving: Leaving,
        roads: Roads,
    ) -> None:
        self._books = books
        self._boards = boards
        self._waiting = waiting
        self._rates = transfers.rates
        self._host_memory = host_memory
        self._endings = endings
        self._sealing = sealing
        self._leaving = leaving
        self._roads = roads
        # Incarnations of replicas that can't join as things are.
        self._turned_away: dict[str, int] = {}
        # The last incarnation of each replica, and of each host pool, that was here: only a higher one joins.
        self._incarnations: dict[str, int] = {}
        self._pool_incarnations: dict[str, int] = {}
        # Whose last worker left by order: the node and layout of a host pool that nobody needs.
        self._given_back: set[tuple[str, str]] = set()

    # -- replicas

    def on_replica_joined(self, joined: ReplicaJoined) -> None:
        books = self._books
        if self._incarnations.get(joined.replica, -1) >= joined.incarnation:
            books.counters["stale joins"] += 1
            return
        known = books.replicas.get(joined.replica)
        if known is not None:
            self._lose(known)
        wrong = self._boards.why_not(joined)
        if wrong:
            self.turn_away(joined, wrong)
            return
        self._turned_away.pop(joined.replica, None)
        self._incarnations[joined.replica] = joined.incarnation
        replica = new_replica(joined, books)
        books.replicas[joined.replica] = books.owners[replica.ledger.pool] = replica
        self._rates.at_start(joined.node, joined.bytes_per_s)
        self._boards.add(replica)
        self._waiting.look_again(books.now)
        replica.write()

    def turn_away(self, joined: ReplicaJoined, why: str) -> None:
        """It asks again and again, and joins once those are gone that it can't stand beside; people are told once."""
        self._books.counters["replicas turned away"] += 1
        self._books.tell(TurnAway(joined.replica, joined.incarnation, why))
        if self._turned_away.get(joined.replica) != joined.incarnation:
            self._turned_away[joined.replica] = joined.incarnation
            self._books.note("turned away", joined.replica, why)

    def expel(self, replica: Replica, detail: str) -> None:
        """What its worker told cannot be so: nothing that it holds can be believed. Its requests go on elsewhere."""
        self._books.counters["replicas expelled"] += 1
        self._books.tell(Expel(replica.name, replica.incarnation, detail))
        self.on_replica_lost(ReplicaLost(replica.name, replica.incarnation, f"it told what cannot be: {detail}"))

    def on_replica_lost(self, lost: ReplicaLost) -> None:
        replica = self._books.replicas.get(lost.replica)
        if replica is None or replica.incarnation != lost.incarnation:
            return
        model = replica.joined.model
        if self._left(replica):
            self._books.note("left", lost.replica, _order_of(model in self._boards.closed, model))
        else:
            detail = f"{lost.detail}; {len(replica.requests)} requests go on elsewhere"
            self._books.note("lost", lost.replica, detail)
        self._lose(replica)
        if model in self._boards.closed and not self._boards.replicas_of(model):
            self._unload(model)

    def _left(self, replica: Replica) -> bool:
        """One that has drained, or whose model was closed, is gone because somebody wanted it so."""
        was_ordered = replica.is_draining or replica.joined.model in self._boards.closed
        return was_ordered and not replica.requests

    def _lose(self, replica: Replica) -> None:
        """Its memory is gone. What ran there starts again from what the gateways have."""
        books, has_left = self._books, self._left(replica)
        books.counters["replicas left" if has_left else "replicas lost"] += 1
        (self._given_back.add if has_left else self._given_back.discard)(_home(replica))
        del books.replicas[replica.name]
        self._boards.remove(replica)
        pool = replica.ledger.pool
        del books.owners[pool]
        self._leaving.lose(replica, self._roads.lose_replica(replica))
        self._ask_of_ended(pool)
        books.give_back_pool(pool)

    def _ask_of_ended(self, pool: int) -> None:
        """The tokens of what ended there may have died with it."""
        for request in list(self._books.unclosed.values()):
            if any(sequence.last_pool == pool for sequence in request.sequences):
                self._sealing.ask(request)
                _forget_pool(request, pool)
        # So may those of single sequences, whose siblings went on elsewhere: to ask would stop these.
        for request in list(self._books.requests.values()):
            if request.state is not State.SEALING and len(request.sequences) > 1:
                for sequence in request.sequences:
                    if sequence.is_ended and sequence.cut is None and sequence.last_pool == pool:
                        self._sealing.replay(request, sequence)
            _forget_pool(request, pool)

    def on_drain(self, drain: Drain) -> None:
        replica = self._books.replicas.get(drain.replica)
        if replica is None:
            return
        replica.is_draining = drain.on
        replica.drained_from = self._books.now
        replica.write()

    # -- models

    def on_close_model(self, close: CloseModel) -> None:
        """What is accepted of this model ends; nothing new is taken."""
        if not close.on:
            self._boards.reopen(close.model)
        elif self._boards.replicas_of(close.model):
            self._boards.close(close.model)
        elif self._boards.find(close.model) is not None:
            self._unload(close.model)

    def _unload(self, model: str) -> None:
        """A closed model has lost its last replica: who still waits for it is told."""
        for request in [one for one in self._books.requests.values() if one.model == model and not one.is_cancelled]:
            detail = f"model {model} was unloaded before the request could end"
            self._endings.break_off(request, "UNAVAILABLE", detail, Reason.DROPPED)
        self._boards.forget(model)

    # -- host pools

    def on_pool_joined(self, joined: HostPoolJoined) -> None:
        books = self._books
        if self._pool_incarnations.get(joined.pool, -1) >= joined.incarnation:
            books.counters["stale joins"] += 1
            return
        known = books.pools.get(joined.pool)
        if known is not None:
            self._lose_pool(known)
        self._pool_incarnations[joined.pool] = joined.incarnation
        ledger = Ledger(books.next_pool(), joined.num_blocks, "lru", books.index, books)
        books.pools[joined.pool] = books.owners[ledger.pool] = HostPool(joined, ledger)
        self._rates.at_start(joined.node, joined.bytes_per_s)

    def on_pool_lost(self, lost: HostPoolLost) -> None:
        host = self._books.pools.get(lost.pool)
        if host is None or host.incarnation != lost.incarnation:
            return
        if self._is_given_back(host):
            self._books.note("left", lost.pool, "as ordered: the workers that it was for have left")
        else:
            self._books.note("lost", lost.pool, f"{lost.detail}; what lay there is computed again")
        self._lose_pool(host)

    def _is_given_back(self, host: HostPool) -> bool:
        """The last worker that used it had left by order: so has the pool."""
        is_used = any(_home(replica) == _home(host) for replica in self._books.replicas.values())
        return not is_used and _home(host) in self._given_back

    def _lose_pool(self, host: HostPool) -> None:
        """Its memory is gone: what lay there is computed again."""
        books = self._books
        books.counters["host pools left" if self._is_given_back(host) else "host pools lost"] += 1
        pool = host.ledger.pool
        del books.pools[host.name], books.owners[pool]
        for replica in books.replicas.values():
            replica.ledger.forget_copies(pool)
        self._host_memory.lose(host)
        for request in list(host.requests.values()):
            if request.state in (State.QUEUED, State.SEALING):
                self._host_memory.forget(request)
        self._roads.lose_pool(host)
        books.give_back_pool(pool)


def _forget_pool(request: Request, pool: int) -> None:
    """Its number will be another's."""
    for sequence in request.sequences:
        if sequence.last_pool == pool:
            sequence.last_pool = 0


def _home(member: Replica | HostPool) -> tuple[str, str]:
    """What a replica and the host pool beside it have in common."""
    return member.joined.node, member.joined.fingerprint


def _order_of(is_closed: bool, model: str) -> str:
    return f"as ordered: model {model} was unloaded" if is_closed else "as ordered: it was drained"
