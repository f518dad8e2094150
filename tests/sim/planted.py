"""Mistakes that a test plants one at a time into the real machines or into a simulated gateway or transfer.

What comes twice, out of order or from an earlier life is kept from desk and centre by their links: `planted_links.py`.
Each is the kind of slip that a change could bring in unseen. `plant` patches one method for the time of a test; nothing
here is ever on outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cluster.centre import adoption, starts, transfers
from cluster.centre.admission import Admission
from cluster.centre.adoption import Adoption
from cluster.centre.beginnings import Beginnings
from cluster.centre.endings import Endings
from cluster.centre.fetch import Fetch, Fetches
from cluster.centre.host_cache import HostCache
from cluster.centre.leases import Leases
from cluster.centre.ledger import Ledger
from cluster.centre.move import Move, MovePhase
from cluster.centre.moves import Moves
from cluster.centre.nouns import HostPool, Replica, Request, Sequence, State
from cluster.centre.revokes import Revokes
from cluster.centre.sealing import Sealing
from cluster.gateway.door.log import RequestLog
from cluster.hashing import HASH_BYTES, BlockHasher
from cluster.messages import (
    Copy,
    Ids,
    Revoked,
    Road,
    Start,
    Transfer,
    Transferred,
)
from cluster.register.moving import ARRIVED
from cluster.register.moving import Moving as RegisterMoving
from cluster.register.register import Register
from cluster.register.states import TransferPhase as RegisterPhase
from cluster.sim.transfers import SimTransfers
from tests.sim import planted_desk

Patch = pytest.MonkeyPatch


def _refcount_skipped(patch: Patch) -> None:
    share = Ledger.share
    patch.setattr(Ledger, "share", lambda self, blocks, owner: share(self, blocks[:-1], owner))


def _block_never_released(patch: Patch) -> None:
    release = Ledger.release
    patch.setattr(Ledger, "release", lambda self, blocks, owner: release(self, blocks[:-1], owner))


def _wrong_slot_count_on_a_copy(patch: Patch) -> None:
    patch.setattr(starts, "Copy", lambda source, target, num_slots: Copy(source, target, num_slots - 1))


def _copy_the_wrong_way_round(patch: Patch) -> None:
    patch.setattr(starts, "Copy", lambda source, target, num_slots: Copy(target, source, num_slots))


def _hit_covers_the_whole_prompt(patch: Patch) -> None:
    def greedy(**fields: Any) -> Start:
        if fields["position"] and fields["position"] == len(fields["tokens"]) - 1:
            fields["position"] += 1
        return Start(**fields)

    patch.setattr(starts, "Start", greedy)


def _lease_without_its_blocks(patch: Patch) -> None:
    renew = Leases.renew

    def generous(self: Leases, replica: Replica, sequence: Sequence) -> None:
        renew(self, replica, sequence)
        extends = replica.draft.extends
        if extends.seqs and extends.seqs[-1] == sequence.seq:
            extends.lease_ends[-1] += 2 * replica.block_size

    patch.setattr(Leases, "renew", generous)


def _block_shared_before_it_is_full(patch: Patch) -> None:
    fill = Leases.fill

    def early(self: Leases, replica: Replica, sequence: Sequence, position: int, hashes: bytes) -> None:
        prompt = len(sequence.request.prompt)
        end = min(position + replica.block_size, prompt) if position < prompt else position
        fill(self, replica, sequence, end, hashes)

    patch.setattr(Leases, "fill", early)


def _cached_block_reused_without_unlisting(patch: Patch) -> None:
    def forgetful(self: Ledger, block: int) -> None:
        self._names[block] = b""

    patch.setattr(Ledger, "_unname", forgetful)


def _block_written_behind_though_it_is_used_anew(patch: Patch) -> None:
    unname = Ledger._unname

    def forgetful(self: Ledger, block: int) -> None:
        watched, self.watched = self.watched, set()
        unname(self, block)
        self.watched = watched

    patch.setattr(Ledger, "_unname", forgetful)


def _one_slot_more_than_agrees(patch: Patch) -> None:
    find = Beginnings.find

    def generous(self: Beginnings, shared: list[int], names: bytes, salt: bytes, tokens: Ids) -> Any:
        found = find(self, shared, names, salt, tokens)
        return found and (found[0], min(found[1] + 1, len(tokens)))

    patch.setattr(Beginnings, "find", generous)


def _block_found_by_what_it_held_before(patch: Patch) -> None:
    class Trusting:
        """A ledger of which every block still holds what it held behind the shared ones."""

        def __init__(self, name: bytes) -> None:
            self._name = name

        def name(self, block: int) -> bytes:
            return self._name

    find = Beginnings.find

    def forgetful(self: Beginnings, shared: list[int], names: bytes, salt: bytes, tokens: Ids) -> Any:
        ledger, last, at = self._ledger, shared[-1] if shared else self._roots.get(salt, 0), len(shared) * HASH_BYTES
        self._ledger = Trusting(self._through[last][2][at : at + HASH_BYTES])  # type: ignore[assignment]
        found = find(self, shared, names, salt, tokens)
        self._ledger = ledger
        return found if found is not None and ledger.name(found[0]) else None

    patch.setattr(Beginnings, "find", forgetful)


def _both_sides_restart_one_request(patch: Patch) -> None:
    def impatient(self: Sealing, request: Request) -> None:
        request.state = State.QUEUED
        self._waiting.queue(request)

    patch.setattr(Sealing, "seal", impatient)


def _seal_lost_by_the_gateway(patch: Patch) -> None:
    patch.setattr(RequestLog, "seal", lambda self, attempt: None)


def _late_writer_not_quarantined(patch: Patch) -> None:
    end_moving = Ledger.end_moving
    patch.setattr(Ledger, "end_moving", lambda self, blocks, quarantine=False: end_moving(self, blocks))
    patch.setattr(Ledger, "end_quarantine", lambda self, blocks: None)


def _swapped_blocks_come_back_in_another_order(patch: Patch) -> None:
    def shuffled(
        number: int, road: Road, peer: str, incarnation: int, mine: Any, theirs: Any, limit: float
    ) -> Transfer:
        if road is Road.READ:
            theirs = theirs[1:] + theirs[:1]
        return Transfer(number, road, peer, incarnation, mine, theirs, limit)

    patch.setattr(transfers, "Transfer", shuffled)


def _corrupt_chunk_accepted(patch: Patch) -> None:
    take = RegisterMoving.take

    def credulous(self: RegisterMoving, number: int, wanted: int, copy: Callable[[int], int]) -> int:
        def believed(number: int) -> int:
            copy(number)
            return wanted

        return take(self, number, wanted, believed)

    patch.setattr(RegisterMoving, "take", credulous)


def _doubled_chunk_counted(patch: Patch) -> None:
    def careless(self: RegisterMoving, number: int, wanted: int, copy: Callable[[int], int]) -> int:
        crc = copy(number)
        if crc == wanted:
            self.chunks[number] = ARRIVED
            self.crcs[number] = crc
            self.num_missing -= 1
        return crc

    patch.setattr(RegisterMoving, "take", careless)


def _transfer_told_as_done_too_early(patch: Patch) -> None:
    begin = SimTransfers.begin

    def hasty(self: SimTransfers, order: Transfer, epoch: int) -> None:
        told, self._on_settled = self._on_settled, lambda transferred: None
        begin(self, order, epoch)
        told(Transferred(order.transfer, True, "", 1, 0.001))
        self._owner.after(1.0, setattr, self, "_on_settled", told)

    patch.setattr(SimTransfers, "begin", hasty)


def _commit_before_the_last_chunk(patch: Patch) -> None:
    begin_finish = Register.begin_finish

    def hasty(self: Register, moving: RegisterMoving, now: float) -> bool:
        moving.num_missing = 0
        return begin_finish(self, moving, now)

    patch.setattr(Register, "begin_finish", hasty)


def _late_chunk_into_a_reused_block_accepted(patch: Patch) -> None:
    def lasting(self: Register, moving: RegisterMoving, phase: RegisterPhase, reason: str) -> None:
        moving.phase, moving.reason = phase, reason
        self._known.end(moving)

    patch.setattr(Register, "_end", lasting)
    patch.setattr(Register, "_check_live", lambda self, moving: None)


def _quarantine_left_out_by_the_pool(patch: Patch) -> None:
    patch.setattr(RegisterMoving, "quarantined", property(lambda self: False))


def _reservation_of_an_old_epoch_accepted(patch: Patch) -> None:
    patch.setattr(Register, "_check_name", lambda self, name: self._check_incarnation(name))


def _give_up_forgotten_by_the_pool(patch: Patch) -> None:
    patch.setattr(Register, "give_up", lambda self, epoch, transfer, now: None)


def _source_freed_before_its_move_has_committed(patch: Patch) -> None:
    order = Moves._order

    def hasty(self: Moves, move: Move, theirs: list[int], mine: list[int]) -> None:
        order(self, move, theirs, mine)
        if move.phase is MovePhase.FINISHING:
            self._let_go(move)

    patch.setattr(Moves, "_order", hasty)


def _moved_without_its_part_filled_block(patch: Patch) -> None:
    order = Moves._order

    def short(self: Moves, move: Any, theirs: list[int], mine: list[int]) -> None:
        order(self, move, theirs[:-1] + theirs[:1], mine)

    patch.setattr(Moves, "_order", short)


def _blocks_free_before_the_revoke_is_answered(patch: Patch) -> None:
    revoke_unused = Revokes.revoke_unused

    def hasty(self: Revokes, replica: Replica, needed: int) -> int:
        count = revoke_unused(self, replica, needed)
        for order in replica.draft.revokes:
            self.take_back(replica, Revoked(order.seq, order.lease_end))
        return count

    patch.setattr(Revokes, "revoke_unused", hasty)


def _who_waits_for_a_block_is_forgotten(patch: Patch) -> None:
    patch.setattr(Leases, "serve_wanting", lambda self, replica: replica.wanting.clear())


def _nobody_is_admitted_while_others_run(patch: Patch) -> None:
    """Room beside those that run is not used. All ends all the same, only later: the bound on progress sees it."""
    admit = Admission.admit

    def shy(self: Admission, touched: Any) -> None:
        replicas = self._books.replicas.values()
        if not any(replica.requests for replica in replicas):
            admit(self, replicas)

    patch.setattr(Admission, "admit", shy)


def _prefix_fetched_from_blocks_that_are_not_kept(patch: Patch) -> None:
    begin = Fetches.begin

    def careless(self: Fetches, request: Request, hits: dict[int, list[int]]) -> int:
        number = begin(self, request, hits)
        if number:
            (fetch,) = [fetch for known, fetch in self._transfers.all(Fetch) if known == number]
            self._let_go(fetch)
        return number

    patch.setattr(Fetches, "begin", careless)


def _written_behind_under_the_name_of_another_block(patch: Patch) -> None:
    choose = HostCache._choose

    def muddled(self: HostCache, replica: Replica, host: HostPool) -> dict[int, bytes]:
        chosen = choose(self, replica, host)
        return dict(zip(chosen, [*list(chosen.values())[1:], *list(chosen.values())[:1]], strict=True))

    patch.setattr(HostCache, "_choose", muddled)


def _names_do_not_know_the_model(patch: Patch) -> None:
    """Two models of one layout then find each other's blocks: in the index, parked, fetched, written behind."""
    make = BlockHasher.__init__

    def blind(self: BlockHasher, key: bytes, digest: bytes, salt: bytes, block_size: int) -> None:
        make(self, key, b"", salt, block_size)

    patch.setattr(BlockHasher, "__init__", blind)


def _former_gateway_never_told_to_hand_over(patch: Patch) -> None:
    own = Adoption.own

    def silent(self: Adoption, request: Request, gateway: str, route: int, turn: int = 0) -> None:
        tell, self._books.tell = self._books.tell, lambda order: None  # type: ignore[method-assign]
        own(self, request, gateway, route, turn)
        self._books.tell = tell  # type: ignore[method-assign]

    patch.setattr(Adoption, "own", silent)


def _resume_with_other_parameters_taken(patch: Patch) -> None:
    patch.setattr(adoption, "difference", lambda *_: ("", ""))


def _done_never_told(patch: Patch) -> None:
    patch.setattr(Endings, "tell_done", lambda self, request: None)


PLANTS: dict[str, Callable[[Patch], None]] = planted_desk.PLANTS | {
    name.strip("_").replace("_", " "): plant
    for name, plant in list(globals().items())
    if name.startswith("_") and not name.startswith("__") and callable(plant)
}
