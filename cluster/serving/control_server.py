"""The scheduler's end of the control streams: one long-lived stream per replica or host pool.

A stream that breaks is resumed within `silence_s`: plans that the worker has not obeyed are sent again. One that stays
silent for longer has lost its incarnation, and with it its whole pool: the scheduler is told, and the incarnation is
refused for ever after. Connections are `cluster/serving/frame_stream.py`'s. Nothing here decides; events go to the
host, plans come from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field

from cluster.errors import ProtocolError
from cluster.messages import Expel, GiveUp, HostPoolLost, Plan, ReplicaLost, TurnAway
from cluster.serving.frame_stream import FramePort, FrameStream
from cluster.serving.host import SchedulerHost
from cluster.serving.inside import Inside
from cluster.wire.frames import framed
from cluster.wire.plans import fill_plan, parsed, result_from
from cluster.wire.state import (
    fill_give_up,
    host_pool_joined_from,
    host_pool_settled_from,
    replica_joined_from,
    replica_state_from,
)
from protos import NEWEST_PROTOCOL
from protos.quire.v1 import control_pb2 as pb
from worker.frame_link import CONTROL

log = logging.getLogger(__name__)

# Plans that a worker has not obeyed: one that hears and does nothing for so long is as good as dead.
MAX_UNOBEYED = 10_000
# A broken stream is opened again within a fraction of a second by a process that lives.
BROKEN_SHARE = 0.25
_PULSE = framed(pb.FromScheduler(pulse=pb.Pulse()))


@dataclass
class Peer:
    """One incarnation of a replica or host pool, over all its streams."""

    name: str
    incarnation: int
    is_replica: bool
    heard_at: float
    address: str = ""
    # Plans that it has not obeyed yet, oldest first, as they went out.
    unobeyed: deque[tuple[int, bytes]] = field(default_factory=deque)
    stream: FrameStream | None = None
    # Something went out since the last look: who was told nothing gets a pulse.
    was_told: bool = False
    # Its stream broke then and has not come back: a process that died is found out before it has been silent long.
    broken_at: float | None = None
    result: int = 0
    step: int = 0
    # When it was last heard that it had finished a step; joining follows one that tries the whole model.
    stepped_at: float = 0.0
    step_seconds: float = 0.0


class ControlServer:
    """All control streams of the cluster."""

    def __init__(self, host: SchedulerHost, silence_s: float = 3.0) -> None:
        self._host = host
        self._silence_s = silence_s
        self.peers: dict[str, Peer] = {}
        host.turn_away = self._turn_away
        host.expel = self._expel
        self.port: FramePort | None = None
        self._by_stream: dict[FrameStream, Peer] = {}
        self._lost: dict[str, int] = {}
        self._directory: dict[str, str] = {}

    async def listen(self, inside: Inside) -> str:
        """Where workers and host pools find it."""
        self.port = FramePort(inside, self, CONTROL, "control streams")
        return await self.port.listen()

    def close(self) -> None:
        if self.port is not None:
            self.port.close()

    # -- the directory: who is where

    def announce(self, name: str, address: str) -> None:
        """Tells everybody where a gateway takes tokens or a pool takes transfers; an empty address takes it back."""
        if address:
            self._directory[name] = address
        else:
            self._directory.pop(name, None)
        directory = self._directory_frame()
        for peer in self.peers.values():
            _tell(peer, directory)

    def _directory_frame(self) -> bytes:
        message = pb.FromScheduler()
        message.directory.SetInParent()
        for name, address in self._directory.items():
            message.directory.entries.add(name=name, address=address)
        return framed(message)

    # -- streams

    def heard(self, stream: FrameStream, raw: bytes) -> None:
        message = parsed(pb.ToScheduler, raw)
        peer = self._by_stream.get(stream)
        if peer is None:
            self._greet(stream, message)
        elif peer.stream is stream:
            peer.heard_at = self._host.now
            self._take(peer, message)

    def ended(self, stream: FrameStream) -> None:
        peer = self._by_stream.pop(stream, None)
        if peer is not None and peer.stream is stream:
            peer.stream, peer.broken_at = None, self._host.now

    def _greet(self, stream: FrameStream, message: pb.ToScheduler) -> None:
        if message.WhichOneof("message") != "hello":
            raise ProtocolError("the first message of a control stream must be a hello")
        hello = message.hello
        name, incarnation = _who(hello)
        refusal = ""
        if not hello.oldest_protocol <= NEWEST_PROTOCOL <= hello.newest_protocol:
            spoken = f"{hello.oldest_protocol} to {hello.newest_protocol}"
            refusal = (
                f"the scheduler speaks protocol {NEWEST_PROTOCOL}, {name} {spoken}; install the same Quire on both"
            )
        is_lost = incarnation <= self._lost.get(name, 0)
        if is_lost:
            refusal = f"incarnation {incarnation} of {name} was declared lost; join with a higher one"
        if refusal:
            stream.send(framed(pb.FromScheduler(refusal=pb.Refusal(detail=refusal, is_lost=is_lost))))
            stream.close()
            return
        peer, welcome = self._meet(hello, name, incarnation)
        if peer.stream is not None:
            peer.stream.close()
        peer.stream, peer.broken_at = stream, None
        self._by_stream[stream] = peer
        stream.send(framed(welcome))
        stream.send(self._directory_frame())
        for number, frame in peer.unobeyed:
            if number > hello.plan or hello.epoch != self._host.scheduler.epoch:
                stream.send(frame)

    def _meet(self, hello: pb.Hello, name: str, incarnation: int) -> tuple[Peer, pb.FromScheduler]:
        """The peer of this hello and what it is told first. A new incarnation joins; a known one goes on."""
        host, epoch = self._host, self._host.scheduler.epoch
        peer = self.peers.get(name)
        is_known = peer is not None and peer.incarnation == incarnation
        wants_state = not is_known and hello.epoch != 0 and hello.WhichOneof("joined") == "replica"
        if peer is None or not is_known:
            is_replica = hello.WhichOneof("joined") == "replica"
            peer = Peer(name, incarnation, is_replica, host.now, hello.transfer_address, stepped_at=host.now)
            self.peers[name] = peer
            if is_replica:
                host.replica_links[name] = lambda plan, peer=peer: self._send(peer, plan)  # type: ignore[misc]
                if not wants_state:
                    host.post(replica_joined_from(hello.replica))
            else:
                host.pool_links[name] = lambda order, peer=peer: self._give_up(peer, order)  # type: ignore[misc]
                host.post(host_pool_joined_from(hello.host_pool))
            if hello.transfer_address:
                self.announce(name, hello.transfer_address)
            log.info("%s joined, incarnation %d", name, incarnation)
        peer.heard_at = host.now
        while peer.unobeyed and hello.epoch == epoch and peer.unobeyed[0][0] <= hello.plan:
            peer.unobeyed.popleft()
        welcome = pb.Welcome(
            epoch=epoch,
            result=peer.result,
            wants_state=wants_state,
            protocol=NEWEST_PROTOCOL,
            silence_s=self._silence_s,
        )
        return peer, pb.FromScheduler(welcome=welcome)

    def _send(self, peer: Peer, plan: Plan) -> None:
        if plan.incarnation != peer.incarnation:
            return
        message = pb.FromScheduler()
        fill_plan(message.plan, plan)
        frame = framed(message)
        peer.unobeyed.append((plan.number, frame))
        _tell(peer, frame)
        if len(peer.unobeyed) > MAX_UNOBEYED:
            self.lose(peer, f"it has not obeyed {len(peer.unobeyed):,} plans")

    def _turn_away(self, order: TurnAway) -> None:
        """It is as if it had never come; it comes again by itself."""
        peer = self.peers.get(order.replica)
        if peer is None or peer.incarnation != order.incarnation:
            return
        del self.peers[peer.name]
        self._host.replica_links.pop(peer.name, None)
        refusal = pb.Refusal(detail=f"{peer.name} can't join: {order.detail}")
        _tell(peer, framed(pb.FromScheduler(refusal=refusal)))
        if peer.stream is not None:
            peer.stream.close()
        self.announce(peer.name, "")

    def _expel(self, order: Expel) -> None:
        """It told what cannot be so: it is lost, and comes back under a higher incarnation."""
        peer = self.peers.get(order.replica)
        if peer is not None and peer.incarnation == order.incarnation:
            self.lose(peer, order.detail)

    def _give_up(self, peer: Peer, order: GiveUp) -> None:
        """To a host pool. What is lost with a broken stream, either way, is made good by `watch`."""
        if order.incarnation == peer.incarnation:
            message = pb.FromScheduler()
            fill_give_up(message.give_up, order)
            _tell(peer, framed(message))

    def _take(self, peer: Peer, message: pb.ToScheduler) -> None:
        kind = message.WhichOneof("message")
        if kind == "result":
            result = result_from(message.result)
            if result.number != peer.result + 1 or result.epoch != self._host.scheduler.epoch:
                return
            peer.result, peer.step_seconds = result.number, result.step_seconds
            self._note_step(peer, result.step)
            while peer.unobeyed and peer.unobeyed[0][0] <= result.plan:
                peer.unobeyed.popleft()
            self._host.post(result)
        elif kind == "state":
            self._host.post(replica_state_from(message.state))
        elif kind == "settled":
            self._host.post(host_pool_settled_from(message.settled))
        elif kind == "pulse":
            self._note_step(peer, message.pulse.step)

    def _note_step(self, peer: Peer, step: int) -> None:
        if step > peer.step:
            peer.step, peer.stepped_at = step, self._host.now

    # -- silence

    async def watch(self) -> None:
        """Declares lost whoever has been silent for too long; also tells the quiet ones that we live, and host pools
        what they have not settled yet."""
        while True:
            await asyncio.sleep(self._silence_s / 8)
            now = self._host.now
            for peer in list(self.peers.values()):
                unsettled = None if peer.is_replica else self._host.scheduler.swapper.unsettled(peer.name)
                if unsettled is not None:
                    self._give_up(peer, unsettled)
                if now - peer.heard_at > self._silence_s:
                    self.lose(peer, f"nothing was heard of it for {now - peer.heard_at:.1f} s")
                elif peer.broken_at is not None and now - peer.broken_at > self._silence_s * BROKEN_SHARE:
                    self.lose(peer, f"its stream broke and has not come back for {now - peer.broken_at:.1f} s")
                elif not peer.was_told:
                    _tell(peer, _PULSE)
                peer.was_told = False

    def lose(self, peer: Peer, detail: str) -> None:
        if self.peers.get(peer.name) is not peer:
            return
        log.warning("%s is lost: %s", peer.name, detail)
        del self.peers[peer.name]
        self._lost[peer.name] = peer.incarnation
        self._host.replica_links.pop(peer.name, None)
        self._host.pool_links.pop(peer.name, None)
        if peer.stream is not None:
            peer.stream.close()
        self.announce(peer.name, "")
        lost = ReplicaLost if peer.is_replica else HostPoolLost
        self._host.post(lost(peer.name, peer.incarnation, detail))


def _tell(peer: Peer, frame: bytes) -> None:
    if peer.stream is not None:
        peer.stream.send(frame)
        peer.was_told = True


def _who(hello: pb.Hello) -> tuple[str, int]:
    if hello.WhichOneof("joined") == "replica":
        return hello.replica.replica, hello.replica.incarnation
    return hello.host_pool.pool, hello.host_pool.incarnation
