"""A replica's end of its link to the scheduler: plans and epochs for the step loop, its words as messages.

The step loop reads and says everything here, on its own thread; `card` and `note` are called by the event loop that
keeps the connection open. What is taken once and sent again is the link's (`cluster/links/`). It obeys nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from cluster.links.dialer import Dialer
from cluster.links.dialing import LOST_EXIT, DialingEnd
from cluster.links.terms import Heard, Met, Order, RefusedByPeer
from cluster.messages import Plan, Result, Tokens
from cluster.wire import control as wire
from worker.step_loop import Inbound, NewEpoch, Outbound, Served, Unreached

log = logging.getLogger(__name__)


class ReplicaStream:
    """The `Link` of a step loop in a cluster."""

    def __init__(
        self,
        worker: Served,
        transfer_address: str,
        push: Callable[[dict[str, list[Tokens]]], object],
        direct: Callable[[dict[str, str]], object],
        unreached: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        """`push` takes tokens for gateways, `direct` where everybody is, `unreached` says who does not take them; all
        are called on the step loop's thread."""
        dialer = Dialer(
            worker.replica, worker.incarnation, wire.SCHEDULER, wire.terms(), wire.read_down, has_state=True
        )
        self.end = DialingEnd(dialer)
        self._worker = worker
        self._transfer_address = transfer_address
        self._push = push
        self._direct = direct
        self._unreached = unreached
        self._told_unreached: tuple[str, ...] = ()
        self._directory: dict[str, str] = {}
        # Why it was last refused; said once, however often it asks.
        self._refusal = ""

    # -- the event loop's

    def card(self) -> bytes:
        return wire.joining_to(self._worker.joined(), self._transfer_address)

    def note(self) -> bytes:
        return wire.step_to(self._worker.num_steps)

    # -- the step loop's

    def read(self) -> list[Inbound]:
        words: list[Inbound] = []
        for order in self.end.read():
            self._take(order, words)
        unreached = self._unreached()
        if unreached != self._told_unreached:
            self._told_unreached = unreached
            words.append(Unreached(unreached))
        return words

    def fileno(self) -> int:
        return self.end.fileno()

    def wait(self, timeout_s: float) -> None:
        self.end.wait(timeout_s)

    def wake(self) -> None:
        self.end.wake()

    def say(self, word: Outbound) -> None:
        if isinstance(word, dict):
            self._push(word)
        elif isinstance(word, Result):
            # What it had for an earlier scheduler means nothing to this one.
            if word.epoch == self.end.dialer.peer_life:
                self.end.say(wire.result_to(word))
        else:
            self.end.say_state(wire.state_to(word))

    def _take(self, order: Order, words: list[Inbound]) -> None:
        if isinstance(order, Heard):
            message = order.message
            if isinstance(message, Plan):
                words.append(message)
            elif isinstance(message, wire.Directory):
                self._directory = message.after(self._directory)
                self._direct(self._directory)
            else:
                log.error("the scheduler sent a replica a word for host pools: it is passed over")
        elif isinstance(order, Met):
            if order.is_new:
                words.append(NewEpoch(order.life, order.wants_state))
        elif isinstance(order, RefusedByPeer):
            if order.detail != self._refusal:
                self._refusal = order.detail
                log.error("%s", order.detail)
            if order.is_lost:
                # Declared lost while it was away. What it holds means nothing any more, so it starts anew.
                os._exit(LOST_EXIT)
