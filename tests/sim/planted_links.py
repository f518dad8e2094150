"""Mistakes that a test plants one at a time into the machines of links, by the rules of `cluster/links/README.md`.

What only a lower life, a hostile peer or a gap within a connection would show is held by `tests/links/`: no simulated
process does that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.links import listener
from cluster.links.dialer import Dialer
from cluster.links.frames import Hello, hello_from
from cluster.links.numbers import Numbers

Patch = pytest.MonkeyPatch


def _a_frame_counts_twice(patch: Patch) -> None:
    take = Numbers.take

    def again(self: Numbers, kind: int, number: int, *rest: Any) -> Any:
        self.taken = min(self.taken, number - 1)
        self.told = min(self.told, self.taken)
        return take(self, kind, number, *rest)

    patch.setattr(Numbers, "take", again)


def _what_was_not_taken_is_not_sent_again(patch: Patch) -> None:
    patch.setattr(Numbers, "reopen", lambda self: None)


def _more_is_forgotten_than_was_taken(patch: Patch) -> None:
    acknowledge = Numbers.acknowledge
    patch.setattr(Numbers, "acknowledge", lambda self, number: acknowledge(self, min(self.said, number + 1)))


def _parts_go_with_their_connection(patch: Patch) -> None:
    reopen = Numbers.reopen

    def forgetful(self: Numbers) -> None:
        self._parts, self.parts_bytes = [], 0
        reopen(self)

    patch.setattr(Numbers, "reopen", forgetful)


def _nobody_is_asked_for_a_state(patch: Patch) -> None:
    def blind(body: bytes) -> Hello:
        return replace(hello_from(body), has_state=False)

    patch.setattr(listener, "hello_from", blind)


def _a_new_life_goes_on_with_the_numbers_of_the_old_one(patch: Patch) -> None:
    def go_on(self: Dialer, life: int, wants_state: bool) -> None:
        self.peer_life = life

    patch.setattr(Dialer, "_meet_anew", go_on)


def _a_silence_is_never_noticed(patch: Patch) -> None:
    patch.setattr(Dialer, "silence", lambda self, now: [])


LINK_PLANTS: dict[str, Callable[[Patch], None]] = {
    name.strip("_").replace("_", " "): plant
    for name, plant in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and callable(plant)
}
