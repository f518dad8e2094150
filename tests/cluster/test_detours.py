"""Tokens whose gateway cannot be reached from the replica that draws them: they go by the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.links.dialer import Dialer
from cluster.links.frames import FrameBuffer
from cluster.links.listener import Listener
from cluster.links.terms import Send, Terms
from cluster.messages import Order, Reason, Replay, Result, Start, Submit
from cluster.sampling import SamplingParams
from cluster.wire.plans import decode_result, encode_result
from tests.cluster.test_scheduler import Driver, starts, submit


class Cut(Driver):
    """Its replica says with each result which gateways it cannot reach."""

    unreached: tuple[str, ...] = ()

    def turn(self, *events: object) -> list[Order]:
        told = [replace(one, unreached=self.unreached) if isinstance(one, Result) else one for one in events]
        return super().turn(*told)  # type: ignore[arg-type]


def replays(orders: Sequence[Order]) -> list[tuple[str, int, int, Reason]]:
    return [
        (order.gateway, order.tokens.route, len(order.tokens.ids), order.tokens.reason)
        for order in orders
        if isinstance(order, Replay)
    ]


def begun(driver: Driver, asked: Submit) -> Start:
    return starts(driver.turn(asked))[asked.request_id]


def test_what_a_replica_reports_goes_on_to_a_gateway_that_it_cannot_reach() -> None:
    driver = Cut()
    one, other = submit("one", range(10), 40), replace(submit("other", range(50, 60), 40), gateway="h")
    first, second = begun(driver, one), begun(driver, other)
    assert not replays(driver.result([(first, 14, 5), (second, 14, 5)]))
    # From now on: all that is known at once, then with each report, from the beginning, for what came by the straight
    # road may still be on its way.
    driver.unreached = ("g",)
    assert replays(driver.result([(second, 20, 6)])) == [("g", one.route, 5, Reason.NONE)]
    assert replays(driver.result([(first, 30, 16), (second, 30, 10)])) == [("g", one.route, 21, Reason.NONE)]
    assert replays(driver.result([(first, 46, 16), (second, 46, 16)])) == [("g", one.route, 37, Reason.NONE)]
    assert replays(driver.result(stopped=[(first, Reason.LENGTH, 49, 3)])) == [("g", one.route, 40, Reason.LENGTH)]
    # The straight road is free again.
    driver.unreached = ()
    assert not replays(driver.result(stopped=[(second, Reason.LENGTH, 49, 3)]))


def test_the_end_that_a_gateway_did_not_hear_is_told_by_the_scheduler() -> None:
    driver = Cut()
    asked = submit("q", range(10), 20)
    start = begun(driver, asked)
    assert not replays(driver.result(stopped=[(start, Reason.STOP, 14, 5)]))
    driver.unreached = ("g",)
    assert replays(driver.result()) == [("g", asked.route, 5, Reason.STOP)]
    assert not replays(driver.result())


def test_logprobs_wait_for_the_straight_road() -> None:
    driver = Cut()
    asked = submit("q", range(10), 20)
    asked = replace(asked, sampling=SamplingParams(temperature=0.0, max_tokens=20, logprobs=1))
    start = begun(driver, asked)
    driver.unreached = ("g",)
    assert not replays(driver.result([(start, 14, 5)]))


def test_unreached_gateways_travel() -> None:
    result = Result("r0", 1, 1, 1, 1, 1, unreached=("gateway-0", "gateway-1"))
    assert decode_result(encode_result(result)) == result


def test_an_end_to_which_the_first_words_go_has_its_time_to_take_them() -> None:
    """A worker opens the way to a gateway with the first tokens for it."""
    dialer = Dialer("worker", 1, "gateway", Terms(1, 1, silence_s=8.0, loses=False, keeps=True), bytes)
    dialer.say(b"token")
    assert not dialer.is_unheard(100.0) and not dialer.is_unheard(103.9) and dialer.is_unheard(104.1)


def test_an_end_that_takes_nothing_is_unheard_until_it_takes_again() -> None:
    terms = Terms(1, 1, silence_s=8.0, loses=False, keeps=True)
    dialer = Dialer("worker", 1, "gateway", terms, bytes)
    listener = Listener("gateway", 1, terms, bytes, lambda name, life, card: None)
    up, down = FrameBuffer(), FrameBuffer()

    def frames(buffer: FrameBuffer, raw: bytes) -> list[object]:
        room = buffer.room()
        room[: len(raw)] = raw
        return list(buffer.took(len(raw)))

    assert not dialer.is_unheard(0.0)
    assert not dialer.is_unheard(99.9)
    dialer.say(b"token")
    assert not dialer.is_unheard(100.0) and not dialer.is_unheard(103.9) and dialer.is_unheard(104.1)
    # It is there, is said what was kept, and its next pulse tells that it has taken it.
    listener.opened("c", 105.0)
    orders = listener.heard("c", frames(up, dialer.open(b"", 105.0)), 105.0)
    sent = dialer.heard([one for order in orders if isinstance(order, Send) for one in frames(down, order.frame)])
    listener.heard("c", [one for order in sent if isinstance(order, Send) for one in frames(up, order.frame)], 105.0)
    assert dialer.is_unheard(105.0)
    listener.tick(105.0)
    for order in listener.tick(106.0):
        assert isinstance(order, Send)
        dialer.heard(frames(down, order.frame))
    assert not dialer.is_unheard(106.0) and not dialer.is_unheard(200.0)
