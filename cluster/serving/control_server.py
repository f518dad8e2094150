"""The scheduler's end of the links to replicas and host pools.

The link says who is there, who is lost and what was heard (`cluster/links/`); here that becomes events for the shell,
and plans that come from it become words. A peer whose words do not fit what it is, is lost. Nothing here decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from cluster.errors import ProtocolError
from cluster.links.listener import Listener
from cluster.links.listening import ListeningEnd
from cluster.links.terms import Heard, Met, Order, PeerLost, Pulsed
from cluster.messages import (
    Expel,
    GiveUp,
    HostPoolLost,
    HostPoolSettled,
    Plan,
    ReplicaJoined,
    ReplicaLost,
    ReplicaState,
    Result,
    TurnAway,
)
from cluster.serving.inside import Inside
from cluster.serving.shell import SchedulerShell
from cluster.wire import control as wire


@dataclass(slots=True)
class LivePeer:
    """One incarnation of a replica or host pool."""

    name: str
    incarnation: int
    is_replica: bool
    result: int = 0
    step: int = 0
    # When it was last heard that it had finished a step; joining follows one that tries the whole model.
    stepped_at: float = 0.0
    step_seconds: float = 0.0


class ControlServer:
    """All replicas and host pools of the cluster."""

    def __init__(self, shell: SchedulerShell, silence_s: float = 3.0) -> None:
        self._shell = shell
        self.peers: dict[str, LivePeer] = {}
        shell.turn_away = self._turn_away
        shell.expel = self._expel
        listener = Listener(
            wire.SCHEDULER, shell.scheduler.epoch, wire.terms(silence_s), wire.read_up, wire.joining_from
        )
        self.end = ListeningEnd(listener, self)
        self._directory: dict[str, str] = {}

    async def listen(self, inside: Inside) -> str:
        """Where workers and host pools find it."""
        return await self.end.listen(inside.host, inside.security, wire.GREETING, "control links")

    async def watch(self) -> None:
        """Until cancelled: who is silent for too long is lost."""
        await self.end.watch()

    def close(self) -> None:
        self.end.close()

    def silent_s(self, name: str) -> float:
        """Since this peer was last heard of."""
        known = self.end.listener.peers.get(name)
        return self._shell.now - known.heard_at if known is not None else 0.0

    def lose(self, name: str, detail: str) -> None:
        self.end.lose(name, detail)

    # -- the directory: who is where

    def announce(self, name: str, address: str) -> None:
        """Tells everybody where a gateway takes tokens or a pool takes transfers; an empty address takes it back."""
        if self._directory.get(name, "") == address:
            return
        if address:
            self._directory[name] = address
        else:
            del self._directory[name]
        change = wire.directory_to({name: address}, is_whole=False)
        for peer in list(self.peers):
            self.end.say(peer, change)

    # -- of the link

    def take(self, order: Order) -> None:
        if isinstance(order, Heard):
            peer = self.peers.get(order.peer)
            if peer is not None:
                self._hear(peer, order.message)
        elif isinstance(order, Pulsed):
            peer = self.peers.get(order.peer)
            if peer is not None:
                self._note_step(peer, wire.step_from(order.note))
        elif isinstance(order, Met):
            if order.is_new:
                self._join(order)
        elif isinstance(order, PeerLost):
            self._forget(order)

    def _join(self, met: Met) -> None:
        shell, joining = self._shell, met.card
        assert isinstance(joining, wire.Joining)
        is_replica = isinstance(joining.joined, ReplicaJoined)
        peer = self.peers[met.peer] = LivePeer(met.peer, met.life, is_replica, stepped_at=shell.now)
        if is_replica:
            shell.replica_links[met.peer] = partial(self._plan, peer)
        else:
            shell.pool_links[met.peer] = partial(self._give_up, peer)
        if not met.wants_state:
            # Else its state says all that this says, and more.
            shell.post(joining.joined)
        # All others hear of the change, and it of all of them.
        self.announce(met.peer, joining.transfer_address)
        self.end.say(met.peer, wire.directory_to(self._directory, is_whole=True))

    def _forget(self, lost: PeerLost) -> None:
        peer = self.peers.pop(lost.peer)
        self._shell.replica_links.pop(lost.peer, None)
        self._shell.pool_links.pop(lost.peer, None)
        self.announce(lost.peer, "")
        kind = ReplicaLost if peer.is_replica else HostPoolLost
        self._shell.post(kind(lost.peer, lost.life, lost.detail))

    def _hear(self, peer: LivePeer, message: Result | ReplicaState | HostPoolSettled) -> None:
        try:
            _check_own(peer, message)
            if isinstance(message, Result):
                self._check_result(peer, message)
        except ProtocolError as error:
            # It was taken, and cannot be said again: what else this peer says is as little worth.
            self.end.lose(peer.name, str(error))
            return
        self._shell.post(message)

    def _check_result(self, peer: LivePeer, result: Result) -> None:
        epoch = self._shell.scheduler.epoch
        if result.number != peer.result + 1 or result.epoch != epoch:
            said = f"result {result.number} of epoch {result.epoch}"
            raise ProtocolError(f"it says {said} after {peer.result} of {epoch}")
        peer.result, peer.step_seconds = result.number, result.step_seconds
        self._note_step(peer, result.step)

    def _note_step(self, peer: LivePeer, step: int) -> None:
        if step > peer.step:
            peer.step, peer.stepped_at = step, self._shell.now

    # -- of the shell

    def _plan(self, peer: LivePeer, plan: Plan) -> None:
        if plan.incarnation == peer.incarnation:
            self.end.say(peer.name, wire.plan_to(plan))

    def _turn_away(self, order: TurnAway) -> None:
        """It is as if it had never come; it comes again by itself."""
        peer = self.peers.get(order.replica)
        if peer is None or peer.incarnation != order.incarnation:
            return
        del self.peers[peer.name]
        self._shell.replica_links.pop(peer.name, None)
        self.end.turn_away(peer.name, f"{peer.name} can't join: {order.detail}")
        self.announce(peer.name, "")

    def _expel(self, order: Expel) -> None:
        """It told what cannot be so: it is lost, and comes back under a higher incarnation."""
        peer = self.peers.get(order.replica)
        if peer is not None and peer.incarnation == order.incarnation:
            self.lose(peer.name, order.detail)

    def _give_up(self, peer: LivePeer, order: GiveUp) -> None:
        if order.incarnation == peer.incarnation:
            self.end.say(peer.name, wire.give_up_to(order))


def _check_own(peer: LivePeer, message: Result | ReplicaState | HostPoolSettled) -> None:
    """Raises ProtocolError if this peer speaks for somebody else."""
    if isinstance(message, HostPoolSettled):
        own, is_replica = (message.pool, message.incarnation), False
    else:
        joined = message.joined if isinstance(message, ReplicaState) else message
        own, is_replica = (joined.replica, joined.incarnation), True
    if own != (peer.name, peer.incarnation) or is_replica is not peer.is_replica:
        raise ProtocolError(f"it speaks for {own[0]} of incarnation {own[1]}")
