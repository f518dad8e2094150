"""The scheduler's end of the links to gateways: events in, notices out, who is ready, and figures when they are wanted.

The link says who is there, who is lost and what was heard (`cluster/links/`). Runs in the scheduler's process and loop.
Nothing here decides; events go to the shell, notices come from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.links.listener import Listener
from cluster.links.listening import ListeningEnd
from cluster.links.terms import PULSES, Heard, Met, Order, PeerLost
from cluster.messages import GatewayLost, GatewayState, OpenRequest
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell
from cluster.watching.metrics import Family
from cluster.wire import gateways as wire
from cluster.wire.control import SCHEDULER
from cluster.wire.front import Notice

log = logging.getLogger(__name__)

FIGURES_S = 1.0
"""A gateway that hangs costs a scrape no more."""
MAX_STATE_REQUESTS = 1 << 20


@dataclass(slots=True)
class Session:
    """One life of a gateway."""

    gateway: str
    life: int
    # It said that it is about to be ended by order.
    leaves: bool = False
    # Of this turn, to go out in one write.
    notices: list[bytes] = field(default_factory=list)
    # What has come of its state.
    state: list[OpenRequest] = field(default_factory=list)
    # By number: who waits for its figures.
    wishes: dict[int, asyncio.Future[list[Family]]] = field(default_factory=dict)


class FrontServer:
    """All gateways of the cluster. `served` says what is served now; `announce` tells workers where tokens go."""

    def __init__(
        self,
        shell: SchedulerShell,
        served: Callable[[], tuple[wire.ServedModel, ...]],
        announce: Callable[[str, str], None] = lambda gateway, address: None,
        *,
        hash_key: bytes = b"",
        silence_s: float = wire.SILENCE_S,
    ) -> None:
        self._shell = shell
        self._served = served
        self._announce = announce
        self._models: tuple[wire.ServedModel, ...] = ()
        self._num_wishes = 0
        self.sessions: dict[str, Session] = {}
        # Of the boards, when gateways were told last what is served.
        self._num_changes = 0
        shell.after_turn.append(self._after_turn)
        listener = Listener(
            SCHEDULER,
            shell.scheduler.epoch,
            wire.terms(silence_s),
            lambda raw: wire.read_up(raw, shell.now),
            wire.card_from,
            hash_key,
        )
        self.end = ListeningEnd(listener, self)

    async def listen(self, inside: Inside) -> str:
        """Where gateways find it."""
        return await self.end.listen(inside.host, inside.security, wire.GREETING, "links of gateways")

    async def watch(self) -> None:
        """Until cancelled: finds out who is gone, tells the quiet ones that we live, and everybody what is served."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.end.watch())
            tasks.create_task(self._watch_models())

    def close(self) -> None:
        self.end.close()

    async def figures(self) -> dict[str, list[Family]]:
        """Of each gateway that is there; empty: it did not answer in time."""
        self._num_wishes += 1
        number, loop = self._num_wishes, asyncio.get_running_loop()
        asked: dict[str, asyncio.Future[list[Family]]] = {}
        for session in self.sessions.values():
            asked[session.gateway] = session.wishes[number] = loop.create_future()
            self.end.say(session.gateway, wire.wish_to(number))
        if asked:
            await asyncio.wait(asked.values(), timeout=FIGURES_S)
        for session in self.sessions.values():
            session.wishes.pop(number, None)
        return {name: one.result() if one.done() else [] for name, one in asked.items()}

    async def _watch_models(self) -> None:
        """A replica that makes no steps any more is not ready, though nothing happens."""
        while True:
            self._tell_models()
            await asyncio.sleep(self.end.listener.terms.silence_s / PULSES)

    def _tell_models(self) -> None:
        self._num_changes = self._shell.scheduler.boards.changes
        models = self._served()
        if models != self._models:
            self._models = models
            for name in list(self.sessions):
                self.end.say(name, wire.models_to(models))

    # -- of the shell

    def _after_turn(self) -> None:
        """All of a turn in one write to each gateway, and before it what is served, if that changed."""
        if self._shell.scheduler.boards.changes != self._num_changes:
            self._tell_models()
        for session in list(self.sessions.values()):
            if session.notices:
                notices, session.notices = session.notices, []
                self.end.say_all(session.gateway, notices)

    # -- of the link

    def take(self, order: Order) -> None:
        if isinstance(order, Heard):
            session = self.sessions.get(order.peer)
            if session is not None:
                self._hear(session, order.message)
        elif isinstance(order, Met):
            if order.is_new:
                self._meet(order)
        elif isinstance(order, PeerLost):
            self._forget(order)

    def _meet(self, met: Met) -> None:
        session = self.sessions[met.peer] = Session(met.peer, met.life)

        def notify(notice: Notice) -> None:
            session.notices.append(wire.notice_to(notice))

        self._shell.gateway_links[met.peer] = notify
        self._announce(met.peer, met.card)
        self.end.say(met.peer, wire.models_to(self._models))

    def _hear(self, session: Session, message: wire.Up) -> None:
        if isinstance(message, wire.StatePart):
            session.state += message.state.requests
            if len(session.state) > MAX_STATE_REQUESTS:
                self.end.lose(session.gateway, f"it tells of more than {MAX_STATE_REQUESTS:,} requests")
            elif message.is_last:
                whole, session.state = tuple(session.state), []
                self._shell.post(GatewayState(message.state.gateway, whole))
        elif isinstance(message, wire.Figures):
            wish = session.wishes.pop(message.number, None)
            if wish is not None:
                wish.set_result(message.families)
        elif isinstance(message, wire.Leaves):
            session.leaves = True
        else:
            self._shell.post(message)

    def _forget(self, lost: PeerLost) -> None:
        if self.sessions.pop(lost.peer).leaves:
            log.info("%s has left, as ordered", lost.peer)
        else:
            log.warning("%s is lost: %s", lost.peer, lost.detail)
        self._shell.gateway_links.pop(lost.peer, None)
        self._announce(lost.peer, "")
        self._shell.post(GatewayLost(lost.peer))
