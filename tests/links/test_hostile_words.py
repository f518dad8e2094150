"""Whatever a peer with the secret says on an internal link: the process at the other end goes on, and so does its work.

Words are drawn with every field at its edges or changed byte by byte, read as a link reads them, and taken by the real
ends: the scheduler's two servers with their scheduler, and a gateway with clients. Ports and hellos are tested in
test_control.py, the rules for events alone in tests/sim/test_hostile_events.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message

from cluster.errors import QuireError
from cluster.gateway.answer import Outlet
from cluster.gateway.door.check import check as check_door
from cluster.gateway.front import LocalLink
from cluster.gateway.gateway import Gateway
from cluster.gateway.intake import read_generate
from cluster.gateway.settings import GatewaySettings
from cluster.links.terms import Heard, Met, PeerLost, Pulsed, unreadable
from cluster.messages import Accepted, HostPoolJoined, Logprobs, Reason, ReplicaJoined, Tokens, ids
from cluster.serving.control_server import ControlServer
from cluster.serving.front_server import FrontServer
from cluster.serving.shell import SchedulerShell
from cluster.settings import SchedulerSettings
from cluster.wire import control, gateways, tokens
from cluster.wire.gateways import ServedModel, ServedModels
from protos.quire.v1 import control_pb2, front_pb2
from tests.cluster.front_door import PROMPT, text_model
from tests.cluster.test_gateway import request
from tests.links.drawn import changed, drawn

READS = 20_000
EVERYDAY = 3_000
REPLICA = ReplicaJoined("r0", 1, "n0", "m", 64, 16, 1 << 16, "f", 8, 2048, digest=b"d")
POOL = HostPoolJoined("h0", 1, "n0", 64, 1 << 16, "f", 1e9)


class Words:
    """Draws what a peer says, and reads it as a link does."""

    def __init__(self, seed: int, kind: type[Message], read: Callable[[bytes], Any]) -> None:
        self.random = Random(f"words/{kind.DESCRIPTOR.name}/{seed}")
        self.counts: Counter[str] = Counter()
        self._kind = kind
        self._read = read

    def next(self) -> Any:
        """None: the link would have closed its connection."""
        raw = drawn(self._kind, self.random).SerializeToString()
        return self.read(changed(raw, self.random) if self.random.random() < 0.3 else raw)

    def read(self, raw: bytes) -> Any:
        """As `next`."""
        try:
            message = self._read(raw)
        except Exception as error:
            # As a link does, whatever it was.
            unreadable(raw, error)
            self.counts["refused"] += 1
            return None
        self.counts[type(message).__name__] += 1
        return message

    def own(self, message: Any, **known: Any) -> Any:
        """Often as if it were the peer's own: then it is looked at more closely."""
        names = {field.name for field in fields(message)} if hasattr(message, "__dataclass_fields__") else set()
        changes = {name: value for name, value in known.items() if name in names and self.random.random() < 0.8}
        return replace(message, **changes) if changes else message


def how_many(request: pytest.FixtureRequest) -> int:
    return READS if request.config.getoption("--trust") else EVERYDAY


@pytest.fixture
def num(request: pytest.FixtureRequest) -> int:
    return how_many(request)


def host() -> SchedulerShell:
    return SchedulerShell(SchedulerSettings(prefix_caching=True, max_queue=100), 1)


def turn(of: SchedulerShell) -> None:
    events, of._events = of._events, []
    of._turn(events)
    of.scheduler.check()


def test_what_workers_and_host_pools_say(seed: int, num: int) -> None:
    async def story() -> None:
        centre = host()
        server = ControlServer(centre)
        words = Words(seed, control_pb2.ToScheduler, control.read_up)
        lives, results = {"r0": 0, "h0": 0}, 0
        for _ in range(num):
            name = words.random.choice(("r0", "r0", "r0", "h0"))
            if name not in server.peers:
                lives[name] += 1
                joined = replace(REPLICA if name == "r0" else POOL, incarnation=lives[name])
                server.take(Met(name, lives[name], True, words.random.random() < 0.3, control.Joining(joined, "")))
                results = results if name == "h0" else 0
            message = words.next()
            server.take(Pulsed(name, words.random.randbytes(words.random.randrange(12))))
            if message is None:
                continue
            life = lives[name]
            message = words.own(
                message, replica=name, pool=name, incarnation=life, epoch=1, number=results + 1, plan=0,
                joined=replace(REPLICA, incarnation=life),
            )  # fmt: skip
            server.take(Heard(name, message))
            results += name == "r0" and server.peers["r0"].result > results
            turn(centre)
            if words.random.random() < 0.01 and name in server.peers:
                server.take(PeerLost(name, life, "a test"))
                turn(centre)
        print(words.counts, {what: count for what, count in centre.scheduler.counters.items() if count})
        assert min(words.counts[kind] for kind in ("Result", "ReplicaState", "HostPoolSettled", "refused")) > num // 50

    asyncio.run(story())


def test_what_gateways_say(seed: int, num: int) -> None:
    async def story() -> None:
        centre = host()
        served = (ServedModel("m", True, "", 1, 16, 2048, b"d"),)
        control_server, server = ControlServer(centre), FrontServer(centre, lambda: served)
        control_server.take(Met("r0", 1, True, False, control.Joining(REPLICA, "")))
        words = Words(seed, front_pb2.FromGateway, lambda raw: gateways.read_up(raw, centre.now))
        life = 0
        for _ in range(num):
            if "g0" not in server.sessions:
                life += 1
                server.take(Met("g0", life, True, False, "local:x"))
            message = words.next()
            if message is None:
                continue
            # Of the requests that there are, or of new ones.
            known = list(centre.scheduler.requests.values())[:8]
            named = words.random.choice(known) if known and words.random.random() < 0.5 else None
            message = words.own(
                message,
                gateway="g0",
                model="m",
                digest=b"d",
                tenant="t",
                request_id=f"t/{words.random.randrange(50)}" if named is None else named.request_id,
                route=words.random.randrange(50) if named is None else named.route,
            )
            server.take(Heard("g0", message))
            turn(centre)
            if words.random.random() < 0.01:
                server.take(PeerLost("g0", life, "a test"))
                turn(centre)
        print(words.counts, {what: count for what, count in centre.scheduler.counters.items() if count})
        assert words.counts["Submit"] and words.counts["StatePart"] and words.counts["Figures"]

    asyncio.run(story())


class Front:
    """A gateway with clients' requests, each of which has an outlet."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self._link = LocalLink(self.told.append, b"k" * 16)
        self.gateway = Gateway(GatewaySettings(port=0), self._link, {"m": text_model()})
        self.gateway.take(ServedModels((ServedModel("m", True, "", 1, 16, 2048, b"d"),)))
        self.gateway.is_connected = True
        self._number = self._checks = 0

    async def ask(self, **sampling: Any) -> Any:
        self._number += 1
        stops = sampling.pop("stop", ())
        message = request(PROMPT, request_id=f"q{self._number}", seed=1, **sampling)
        message.sampling.stop.extend(stops)
        answer = await self.gateway.ask("t", read_generate(message, None), Outlet(self.gateway.pace))
        entry = answer.entry
        self.gateway.take(Accepted(entry.submit.gateway, entry.route, entry.request_id, 0, ""))
        return answer

    def check(self) -> None:
        """Now and then: it looks at every request that there ever was, for nobody says Done of them."""
        self._checks += 1
        if self._checks % 25 == 0:
            check_door(self.gateway.door)


def edged(random: Random, answer: Any) -> Tokens:
    """Tokens for this answer, or nearly so."""
    index = random.choice((0, 0, 0, 1, 1, 2, -1, 2**31 - 1))
    known = len(answer.log.sequences[index].ids) if index in (0, 1) else 0
    position = known if random.random() < 0.7 else random.choice((0, -1, known + 1, 2**31 - 1))
    new = ids(random.choice((5, 300, 0, 9_999, 10_000, -1, 2**31 - 1, -(2**31))) for _ in range(random.randrange(4)))
    logprobs = tuple(
        Logprobs(random.choice((0, -1)), float("nan"), -1, ((5, -0.5),)) for _ in range(random.randrange(3))
    )
    route = answer.route if random.random() < 0.9 else random.choice((0, -1, 2**63 - 1))
    reason = random.choice((Reason.NONE,) * 8 + tuple(Reason))
    return Tokens(route, index, random.choice((1, 1, 1, 0, -1, 2**31 - 1)), position, new, reason, logprobs, "why")


def test_what_workers_say_to_gateways(seed: int, num: int) -> None:
    async def story() -> None:
        front = Front()
        words = Words(seed, front_pb2.TokenBatch, tokens.read_batch)
        good, said = await front.ask(max_tokens=2_000, ignore_eos=True), 0
        others: list[Any] = []
        for _ in range(num):
            others = [one for one in others if not one.entry.is_gone and one.entry.failure is None][-6:]
            if len(others) < 4:
                others.append(await front.ask(max_tokens=50, n=2, logprobs=words.random.choice((0, 2)), stop=["wd"]))
            raw = tokens.batch_to([edged(words.random, words.random.choice(others)) for _ in range(2)])
            told = list(words.read(changed(raw, words.random) if words.random.random() < 0.3 else raw) or [])
            # What was changed may speak for the good one, in the name of its own worker.
            told = [one for one in told if one.route != good.route]
            # A word of the good one goes in the same batch.
            if said < 1_900:
                token = 300 + said
                told.append(Tokens(good.route, 0, 1, said, ids([token]), Reason.NONE))
                said += 1
            front.gateway.feed(told)
            front.check()
            assert good.log.sequences[0].ids.tolist() == list(range(300, 300 + said))
        print(words.counts, front.gateway.num_stale)
        assert words.counts["list"] > num // 20

    asyncio.run(story())


def test_what_the_scheduler_says_to_gateways(seed: int, num: int) -> None:
    async def story() -> None:
        front = Front()
        words = Words(seed, front_pb2.ToGateway, gateways.read_down)
        answers: list[Any] = []
        for _ in range(num):
            answers = [one for one in answers if not one.entry.is_gone and one.entry.failure is None][-6:]
            while len(answers) < 4:
                try:
                    answers.append(await front.ask(max_tokens=50))
                except QuireError:
                    front.gateway.take(ServedModels((ServedModel("m", True, "", 1, 16, 2048, b"d"),)))
            message = words.next()
            if message is None or isinstance(message, gateways.WantsFigures):
                continue
            answer = words.random.choice(answers)
            if isinstance(message, ServedModels):
                models = tuple(words.own(model, name="m") for model in message.models)
                message = ServedModels(models)
            message = words.own(message, gateway="gateway-0", route=answer.route, request_id=answer.request_id)
            if hasattr(message, "tokens"):
                message = replace(message, tokens=words.own(message.tokens, route=answer.route, index=0, position=0))
            front.gateway.take(message)
            front.check()
        print(words.counts)
        assert words.counts["ServedModels"] and words.counts["Done"] and words.counts["Accepted"]

    asyncio.run(story())
