"""Says whether a simulated cluster kept its promises: after every turn, at the end, and on its way there.

After a turn the ledgers must add up (proven in full where the scenario says so, else in part now and then). At the end
every accepted request has exactly its tokens, every block is free or cached, nobody waits, and every transfer is
settled. On the way no request may stand still while memory is free. It looks into the scheduler, but changes nothing.
"""

from __future__ import annotations

from cluster.centre.scheduler import Scheduler
from cluster.messages import Event
from cluster.sim.client import Client, Violation
from cluster.sim.progress import Progress
from cluster.sim.world import World


class Judge:
    """One history's judge."""

    def __init__(self, full_check: bool) -> None:
        self.full_check = full_check
        self.num_turns = 0
        self.num_events = 0
        self._progress = Progress()

    def look(self, scheduler: Scheduler, events: list[Event], now: float) -> None:
        """After every turn; `now` is the world's time, which does not leap."""
        self.num_turns += 1
        self.num_events += len(events)
        self._progress.look(scheduler, now)
        if self.full_check or self.num_turns % 64 == 0:
            scheduler.check()
        else:
            for replica in scheduler.replicas.values():
                counts = replica.ledger.counts()
                if min(counts.free, counts.cached, counts.held, counts.moving, counts.quarantined) < 0:
                    raise Violation(f"{replica.name}: {counts} does not add up")

    def end(self, world: World, clients: list[Client]) -> None:
        """Nothing happens any more: what was promised is there, and nothing is left."""
        for client in clients:
            self._judge_client(world, client)
        scheduler = world.shell.scheduler
        scheduler.check()
        self._judge_scheduler(scheduler)
        for worker in world.workers.values():
            if worker.residents:
                raise Violation(f"{worker.name} still runs {list(worker.residents.values())}")
            if worker.transfers.under_way:
                raise Violation(f"{worker.name} still moves {list(worker.transfers.under_way)}")
        for gateway in world.gateways.values():
            if gateway.open:
                left = [request.client.ask.request_id for request in gateway.open.values()]
                raise Violation(f"{gateway.name} still holds {left}")

    def _judge_client(self, world: World, client: Client) -> None:
        ask, outcome = client.ask, client.outcome
        if not outcome:
            raise Violation(f"{ask.request_id} never ended: {_where(world, client)}")
        client.judge()
        code = outcome.removeprefix("refused ")
        if code == outcome:
            return
        if code == "DEADLINE_EXCEEDED" and ask.deadline_s is not None:
            return
        # Before every replica has joined for the first time, it is measured by those that have.
        if code == "INVALID_ARGUMENT" and (ask.at < world.complete_at or not self._fits(world, client)):
            return
        raise Violation(f"{ask.request_id} was {outcome}: {client.detail}")

    def _fits(self, world: World, client: Client) -> bool:
        """Whether the largest pool could hold the request alone."""
        ask = client.ask
        for shape in world.shape.workers:
            if shape.model != ask.model:
                continue
            length = len(ask.prompt) + ask.max_tokens - 1
            shared = len(ask.prompt) // shape.block_size if ask.n > 1 else 0
            needed = shared + ask.n * (-(-length // shape.block_size) - shared)
            if ask.beam_width:
                shared = len(ask.prompt) // shape.block_size
                needed = shared + ask.beam_width * (-(-length // shape.block_size) - shared)
            seats = ask.beam_width or ask.n
            if needed <= shape.num_blocks and length + 1 <= shape.max_model_len and seats <= shape.max_batch:
                return True
        return False

    def _judge_scheduler(self, scheduler: Scheduler) -> None:
        if scheduler.unclosed:
            raise Violation(f"ended requests are kept: {list(scheduler.unclosed)}")
        if scheduler.requests:
            raise Violation(f"requests are left: {list(scheduler.requests.values())}")
        waiting = scheduler.admission.waiting()
        if waiting:
            raise Violation(f"requests wait: {waiting}")
        if scheduler.swapper.transfers:
            raise Violation(f"transfers are left: {scheduler.swapper.transfers}")
        if scheduler.moves.by_request or scheduler.moves.reads:
            raise Violation(f"moves are left: {scheduler.moves.by_request} {scheduler.moves.reads}")
        if scheduler.fetches.under_way or scheduler.host_cache.under_way:
            raise Violation(
                f"fetches or writes are left: {scheduler.fetches.under_way} {scheduler.host_cache.under_way}"
            )
        for replica in scheduler.replicas.values():
            if replica.residents:
                raise Violation(f"{replica.name} still counts {list(replica.residents.values())} among its residents")
        ledgers = {replica.name: replica.ledger for replica in scheduler.replicas.values()}
        ledgers |= {host.name: host.ledger for host in scheduler.swapper.pools.values()}
        gone = scheduler.index.pools.difference(ledger.pool for ledger in ledgers.values())
        if gone:
            raise Violation(f"the index names blocks of pools that are gone: {sorted(gone)}")
        for name, ledger in ledgers.items():
            counts = ledger.counts()
            if counts.held or counts.moving or counts.quarantined:
                raise Violation(f"{name}: at the end {counts}")


def _where(world: World, client: Client) -> str:
    """What is known of a request that did not end."""
    scheduler = world.shell.scheduler
    request = scheduler.requests.get(client.ask.request_id)
    if request is None:
        return f"the scheduler does not know it; got {[len(mine) for mine in client.received]} tokens"
    pools = ", ".join(f"{replica.name} {replica.ledger.counts()}" for replica in scheduler.replicas.values())
    why = "" if request.replica is not None else scheduler.admission.why_waiting(request)
    return f"{request} {why} on {request.replica and request.replica.name}; {pools}"
