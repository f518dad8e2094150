"""Says whether a simulated cluster kept its promises: after every turn, at the end, and on its way there.

After a turn the ledgers must add up (proven in full where the scenario says so, else in part now and then). At the end
every accepted request has exactly its tokens, every block is free or cached, nobody waits, and every transfer is
settled. On the way no request may stand still while memory is free. It looks into the scheduler, but changes nothing.
"""

from __future__ import annotations

from cluster.centre.scheduler import Scheduler
from cluster.gateway.door.check import check
from cluster.messages import Event
from cluster.messages.resume import REPLACED
from cluster.sim.bills import Bills
from cluster.sim.client import SimClient, Violation
from cluster.sim.model import STEP_FAILED, before_first, other_weights, pairs_of, values
from cluster.sim.pool_end import Pool
from cluster.sim.progress import Standstills
from cluster.sim.world import World

LOADED_S = 0.5
"""In which all workers of a model that is loaded again join."""


class Judge:
    """One history's judge."""

    def __init__(self, full_check: bool) -> None:
        self.full_check = full_check
        self.num_turns = 0
        self.num_events = 0
        self._progress = Standstills()
        # By the scheduler's epoch.
        self._bills: dict[int, Bills] = {}

    def look(self, scheduler: Scheduler, events: list[Event], now: float | None) -> None:
        """After every turn; `now` is the world's time, which does not leap. None: nobody has to get on."""
        self.num_turns += 1
        self.num_events += len(events)
        if now is not None:
            self._progress.look(scheduler, now)
        self._bills.setdefault(scheduler.epoch, Bills()).look(scheduler)
        scheduler.deadlines.check()
        if self.full_check or self.num_turns % 64 == 0:
            scheduler.check()
        else:
            for replica in scheduler.replicas.values():
                counts = replica.ledger.counts()
                if min(counts) < 0:
                    raise Violation(f"{replica.name}: {counts} does not add up")

    def end(self, world: World, clients: list[SimClient]) -> None:
        """Nothing happens any more: what was promised is there, and nothing is left."""
        for client in clients:
            self._judge_client(world, client)
        scheduler = world.shell.scheduler
        scheduler.check()
        self._judge_scheduler(scheduler)
        for worker in world.workers.values():
            if not worker.alive:
                continue
            if worker.residents:
                raise Violation(f"{worker.name} still runs {worker.residents}")
            if worker.transfers.under_way:
                raise Violation(f"{worker.name} still moves {list(worker.transfers.under_way)}")
        self._judge_cleared(world, clients)
        for gateway in world.gateways.values():
            check(gateway.door)
            if gateway.door.pins:
                raise Violation(f"{gateway.name} still waits for {list(gateway.door.pins.values())}")
            if gateway.door.entries:
                left = [entry.request_id for entry in gateway.door.entries.values()]
                raise Violation(f"{gateway.name} still holds {left}")

    def _judge_client(self, world: World, client: SimClient) -> None:
        ask, outcome = client.ask, client.outcome
        if not outcome:
            raise Violation(f"{ask.request_id} never ended: {_where(world, client)}")
        client.judge(() if ask.model not in world.replaced else (other_weights(ask.model),))
        if outcome == "lost" and client.num_orphaned and _worker_died(world):
            # Only the death of its gateway, of the scheduler and of a worker at once takes all that was known of it.
            return
        code = outcome.removeprefix("refused ")
        if code == outcome and outcome != "lost":
            return
        loaded_at = world.unloaded.get(ask.model)
        is_of_unloaded = loaded_at is not None and ask.at < loaded_at + LOADED_S
        if is_of_unloaded and code in ("lost", "NOT_FOUND", "INVALID_ARGUMENT"):
            # It was cut short, or asked for what is gone.
            return
        if code == "CANCELLED" and ask.model in world.replaced and REPLACED in client.detail:
            return
        # A new scheduler, and another gateway, may have heard no more than that it failed.
        is_heard_of = client.has_come_back or world.shell.epoch > 1
        is_told = code == "INTERNAL" and (STEP_FAILED in client.detail or is_heard_of)
        if code == "lost" and ask.request_id in world.cut_off:
            # Its gateway was lost before it could say so.
            return
        if ask.request_id in world.failed and (is_told or code == "lost"):
            # Nobody remembers it when its gateway and the scheduler have died: there is nothing to go on with.
            return
        if code == "DEADLINE_EXCEEDED" and ask.deadline_s is not None:
            return
        if code == "RESOURCE_EXHAUSTED" and "unread" in client.detail and world.shape.unread is not None:
            return
        # Before every replica has joined for the first time, it is measured by those that have.
        if code == "INVALID_ARGUMENT" and (ask.at < world.complete_at or not self._fits(world, client)):
            return
        raise Violation(f"{ask.request_id} was {outcome}: {client.detail}")

    def _fits(self, world: World, client: SimClient) -> bool:
        """Whether the largest pool could hold the request alone; where pools changed, the smallest that there has been,
        because a new scheduler measures by those that have reported."""
        ask = client.ask
        for number, shape in enumerate(world.shape.workers):
            if shape.model != ask.model or f"w{number}" in world.buried:
                continue
            length = len(ask.prompt) + ask.max_tokens - 1
            reserve = world.shape.settings.reserve
            shared = len(ask.prompt) // shape.block_size if ask.n > 1 else 0
            needed = shared + ask.n * (-(-length // shape.block_size) - shared)
            if ask.beam_width:
                shared = len(ask.prompt) // shape.block_size
                needed = shared + ask.beam_width * (-(-length // shape.block_size) - shared)
            if reserve != "none":
                end = {"oracle": length, "longest": shape.max_model_len}.get(reserve)
                end = end or min(shape.max_model_len, len(ask.prompt) + _power_of_two(ask.max_tokens))
                needed = _power_of_two(-(-end // shape.block_size))
            seats = ask.beam_width or ask.n
            room = shape.num_blocks if world.fewest is None else world.fewest
            if needed <= room and length + 1 <= shape.max_model_len and seats <= shape.max_batch:
                return True
        return False

    def _judge_cleared(self, world: World, clients: list[SimClient]) -> None:
        """Nothing that a cleared tenant alone has written lies in any pool, or ever came into host memory."""
        cleared = world.shape.settings.clear_tenants
        if not cleared:
            return
        theirs, others = set[bytes](), set[bytes]()
        for client in clients:
            ask = client.ask
            written = theirs if ask.tenant in cleared else others
            for mine in client.received:
                written.update(pairs_of(values(before_first(ask.model), (*ask.prompt, *mine))))
        theirs -= others
        if not theirs.isdisjoint(world.written):
            raise Violation("what a cleared tenant wrote came into host memory")
        pools: list[Pool] = [*world.workers.values(), *world.pools.values()]
        for pool in pools:
            for number, block in enumerate(pool.blocks.content if pool.alive else ()):
                if not theirs.isdisjoint(pairs_of(block)):
                    raise Violation(f"block {number} of {pool.name} still holds what a cleared tenant wrote")

    def _judge_scheduler(self, scheduler: Scheduler) -> None:
        if scheduler.unclosed:
            raise Violation(f"ended requests are kept: {list(scheduler.unclosed)}")
        if scheduler.requests:
            raise Violation(f"requests are left: {list(scheduler.requests.values())}")
        waiting = scheduler.waiting.all()
        if waiting:
            raise Violation(f"requests wait: {waiting}")
        if scheduler.transfers or scheduler.movable.by_request:
            raise Violation(f"transfers or moves are left: {scheduler.transfers} {scheduler.movable.by_request}")
        if scheduler.books.computing:
            raise Violation(f"{len(scheduler.books.computing)} blocks are to be filled, and nobody is there")
        for replica in scheduler.replicas.values():
            if replica.residents:
                raise Violation(f"{replica.name} still counts {list(replica.residents.values())} among its residents")
        ledgers = {replica.name: replica.ledger for replica in scheduler.replicas.values()}
        ledgers |= {host.name: host.ledger for host in scheduler.pools.values()}
        gone = scheduler.index.pools.difference(ledger.pool for ledger in ledgers.values())
        if gone:
            raise Violation(f"the index names blocks of pools that are gone: {sorted(gone)}")
        for name, ledger in ledgers.items():
            counts = ledger.counts()
            if counts.held or counts.moving or counts.quarantined:
                raise Violation(f"{name}: at the end {counts}")


def _power_of_two(number: int) -> int:
    """The lowest that is not below it."""
    return 1 << (number - 1).bit_length()


def _worker_died(world: World) -> bool:
    return any(worker.incarnation > 1 or not worker.alive for worker in world.workers.values())


def _where(world: World, client: SimClient) -> str:
    """What is known of a request that did not end."""
    scheduler = world.shell.scheduler
    request = scheduler.requests.get(client.ask.request_id)
    if request is None:
        return f"the scheduler does not know it; got {[len(mine) for mine in client.received]} tokens"
    pools = ", ".join(f"{replica.name} {replica.ledger.counts()}" for replica in scheduler.replicas.values())
    why = "" if request.replica is not None else scheduler.admission.why_waiting(request)
    return f"{request} {why} on {request.replica and request.replica.name}; {pools}"
