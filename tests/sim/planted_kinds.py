"""Mistakes that only some kinds of histories can see: each is planted with the kind that it needs.

`KIND_PLANTS` has for each what to patch and which scenarios have its kind (`cluster/sim/kinds.py`, `faults.py`); others
are passed over, so that a test does not run histories that could say nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.centre import admission, starts
from cluster.centre.adoption import Adoption
from cluster.centre.boards import Boards
from cluster.centre.books import Hearing
from cluster.centre.fetch import Fetches
from cluster.centre.host_cache import HostCache
from cluster.centre.nouns import Request
from cluster.centre.placement import Board
from cluster.centre.rebuild import Rebuild
from cluster.centre.recovery import Recovery
from cluster.centre.sealing import Sealing
from cluster.centre.waiting import Refusal, Waiting
from cluster.desk.departures import Departures
from cluster.desk.desk import Desk
from cluster.gateway.door.log import RequestLog
from cluster.gateway.door.notices import Notices
from cluster.links.frames import Hello
from cluster.links.listener import Listener
from cluster.messages import Find, Ids, OpenRequest, Reason, Seal
from cluster.register.states import PoolLayout
from cluster.sim.workload import Scenario

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]
Kind = Callable[[Scenario], bool]


def meets(*kinds: str) -> Kind:
    return lambda scenario: any(fault.kind in kinds for fault in scenario.faults)


def has_cleared_tenants(scenario: Scenario) -> bool:
    return bool(scenario.world.settings.clear_tenants)


def has_short_queue(scenario: Scenario) -> bool:
    return scenario.world.settings.max_queue < 10


def writes_behind_at_once(scenario: Scenario) -> bool:
    return not scenario.world.settings.host_cache_every_s


def has_ranks(scenario: Scenario) -> bool:
    return any(shape.num_ranks > 1 for shape in scenario.world.workers)


def has_logprobs(scenario: Scenario) -> bool:
    return any(ask.logprobs or ask.prompt_logprobs for ask in scenario.asks)


def who_was_lost_is_let_in_again(patch: Patch) -> None:
    refusal = Listener._refusal

    def lenient(self: Listener, hello: Hello, taken: int) -> Any:
        refused, card = refusal(self, hello, taken)
        if refused is not None and refused.reason == "lost":
            return None, self._read_card(hello.name, hello.life, hello.card)
        return refused, card

    patch.setattr(Listener, "_refusal", lenient)


def own_standstill_is_everybodys_silence(patch: Patch) -> None:
    patch.setattr(Listener, "_here", lambda self, now: now)


def a_lost_replica_is_waited_for_for_ever(patch: Patch) -> None:
    remove = Board.remove
    patch.setattr(Board, "remove", lambda self, replica, until: remove(self, replica, float("inf")))


def refused_for_a_full_queue_and_not_told_when_to_come(patch: Patch) -> None:
    refusal = Waiting.refusal

    def terse(self: Waiting, request: Any) -> Refusal | None:
        found = refusal(self, request)
        return found and (*found[:2], 0.0)

    patch.setattr(Waiting, "refusal", terse)


def what_a_cleared_tenant_wrote_stays(patch: Patch) -> None:
    patch.setattr(Desk, "_clear", lambda self, blocks: None)


def written_behind_while_a_cleared_tenant_writes(patch: Patch) -> None:
    make = HostCache.__init__

    def forgetful(self: HostCache, *args: Any) -> None:
        make(self, *args)
        self._settings = replace(self._settings, clear_tenants=())

    patch.setattr(HostCache, "__init__", forgetful)


def slices_are_read_by_who_has_no_such_slices(patch: Patch) -> None:
    """Neither the scheduler nor the pools look at how blocks are cut into slices."""
    patch.setattr(Fetches, "_can_read", lambda self, replica, source: True)
    patch.setattr(PoolLayout, "differs", lambda self, other: "")


def tokens_without_logprobs_are_not_drawn_again(patch: Patch) -> None:
    patch.setattr(Sealing, "_draw_again", lambda self, request, sequence, known: None)


def a_prompt_is_judged_behind_a_cached_prefix(patch: Patch) -> None:
    patch.setattr(starts, "uses_cache", lambda request: request.is_cacheable)
    patch.setattr(admission, "uses_cache", lambda request: request.is_cacheable)


def an_unloaded_model_stays_closed(patch: Patch) -> None:
    def half(self: Boards, model: str) -> None:
        self._boards.pop(model, None)

    patch.setattr(Boards, "forget", half)


def who_has_left_is_never_told(patch: Patch) -> None:
    patch.setattr(Departures, "told", lambda self: ())


def who_was_dropped_is_not_remembered(patch: Patch) -> None:
    note = Departures.note

    def forgetful(self: Departures, resident: Any, reason: Reason, tokens: Ids) -> None:
        if reason is not Reason.DROPPED:
            note(self, resident, reason, tokens)

    patch.setattr(Departures, "note", forgetful)


def found_though_only_a_worker_has_told_of_it(patch: Patch) -> None:
    show = Adoption._show

    def credulous(self: Adoption, request: Request, find: Find) -> bool:
        request.is_confirmed |= self._books.hearing.ends_at is None
        return show(self, request, find)

    patch.setattr(Adoption, "_show", credulous)


def an_attempt_counts_though_its_gateway_has_sealed_it(patch: Patch) -> None:
    hear = Rebuild._hear

    def credulous(self: Rebuild, request: Request, told: OpenRequest) -> None:
        hear(self, request, replace(told, attempt=min(told.attempt, request.attempt)))

    patch.setattr(Rebuild, "_hear", credulous)


def other_weights_join_under_a_models_name(patch: Patch) -> None:
    patch.setattr(Board, "why_not", lambda self, joined: "")


def an_answer_goes_on_with_other_weights(patch: Patch) -> None:
    patch.setattr(Sealing, "meet_other_weights", lambda self, request, digest: setattr(request, "digest", digest))


def a_gateway_does_not_learn_whose_tokens_it_has(patch: Patch) -> None:
    on_seal = Notices._on_seal

    def deaf(self: Notices, seal: Seal, now: float) -> None:
        entry = self._kept.entries.get(seal.route)
        on_seal(self, seal if entry is None else replace(seal, digest=entry.submit.digest), now)

    patch.setattr(Notices, "_on_seal", deaf)


def who_tells_what_cannot_be_stays(patch: Patch) -> None:
    patch.setattr(Recovery, "expel", lambda self, replica, detail: None)


def what_failed_ends_as_if_it_were_whole(patch: Patch) -> None:
    patch.setattr(RequestLog, "failed", None)


def what_was_copied_is_copied_again(patch: Patch) -> None:
    """Where all that is cached is more than host memory holds, without end."""
    choose = HostCache._choose

    def forgetful(self: HostCache, replica: Any, host: Any) -> dict[int, bytes]:
        replica.ledger.copied.clear()
        return choose(self, replica, host)

    patch.setattr(HostCache, "_choose", forgetful)


def whoever_starts_for_longer_than_a_scheduler_listens_served_nothing(patch: Patch) -> None:
    patch.setattr(Hearing, "may_join", lambda self, now: self.ends_at is not None and now < self.ends_at)


def what_a_client_brought_may_be_of_any_weights(patch: Patch) -> None:
    on_seal = Notices._on_seal

    def trusting(self: Notices, seal: Seal, now: float) -> None:
        entry = self._kept.entries.get(seal.route)
        if entry is not None:
            entry.is_behind = False
        on_seal(self, seal, now)

    patch.setattr(Notices, "_on_seal", trusting)


KIND_PLANTS: dict[str, tuple[Plant, Kind]] = {
    plant.__name__.replace("_", " "): (plant, kind)
    for plant, kind in (
        (who_was_lost_is_let_in_again, meets("freeze worker", "freeze gateway", "freeze host pool")),
        (own_standstill_is_everybodys_silence, meets("freeze scheduler")),
        (a_lost_replica_is_waited_for_for_ever, meets("bury worker")),
        (refused_for_a_full_queue_and_not_told_when_to_come, has_short_queue),
        (what_a_cleared_tenant_wrote_stays, has_cleared_tenants),
        (written_behind_while_a_cleared_tenant_writes, has_cleared_tenants),
        (what_was_copied_is_copied_again, writes_behind_at_once),
        (an_attempt_counts_though_its_gateway_has_sealed_it, meets("outlast scheduler")),
        (other_weights_join_under_a_models_name, meets("replace weights")),
        (an_answer_goes_on_with_other_weights, meets("replace weights")),
        (a_gateway_does_not_learn_whose_tokens_it_has, meets("replace weights")),
        (who_tells_what_cannot_be_stays, meets("tell what cannot be")),
        (what_failed_ends_as_if_it_were_whole, meets("fail step")),
        (an_unloaded_model_stays_closed, meets("unload model")),
        (slices_are_read_by_who_has_no_such_slices, has_ranks),
        (tokens_without_logprobs_are_not_drawn_again, has_logprobs),
        (a_prompt_is_judged_behind_a_cached_prefix, has_logprobs),
        (whoever_starts_for_longer_than_a_scheduler_listens_served_nothing, meets("kill model and scheduler")),
        (what_a_client_brought_may_be_of_any_weights, meets("replace weights")),
        (who_has_left_is_never_told, meets("kill gateway and scheduler")),
        (who_was_dropped_is_not_remembered, meets("kill gateway and scheduler")),
        (found_though_only_a_worker_has_told_of_it, meets("kill gateway and scheduler")),
    )
}
