"""What is wrong with an event in itself: whatever comes over a stream is looked at before it is believed.

The scheduler asks before it obeys. A flaw is a text that names the field and its figure; an event with one is refused
and counted, and changes nothing. What only the books can tell (a result that no worker can have) is found where it is
read: a ProtocolError there declares the incarnation lost. Peers have proven who they are, so this is about mistakes,
other versions and broken memory; it bounds what any of them can make the scheduler hold or do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cluster.hashing import HASH_BYTES
from cluster.messages import (
    Adopt,
    Cancel,
    Departed,
    Find,
    GatewayState,
    HostPoolJoined,
    Pin,
    Reason,
    ReplicaJoined,
    ReplicaState,
    Resident,
    Result,
    Sealed,
    Start,
    StopAt,
    Submit,
)
from cluster.sampling import required

MAX_BLOCKS = 1 << 23
"""Blocks of one pool: the scheduler keeps about 100 bytes for each."""
MAX_BLOCK_SIZE = 1 << 16
MAX_BYTES = 1 << 62
MAX_BATCH = 1 << 16
MAX_TOKENS = 1 << 30
MAX_SEQUENCES = 1 << 12
MAX_PRIORITY = 1 << 20
MAX_RATE = 1e18
MAX_NUMBER = 1 << 62
MAX_NAME = 1 << 12
MAX_DETAIL = 1 << 12
MAX_LOOK = 1 << 14
MAX_GATEWAYS = 1 << 12
MAX_DEPARTED = 1 << 10


def flaw_of(event: object) -> str:
    """Why this event cannot be obeyed; empty if it can be."""
    look = _LOOK.get(type(event))
    return look(event) if look is not None else ""


def _range(**figures: tuple[float, float, float]) -> str:
    """The first figure that is not between its bounds; NaN is between none."""
    return next((flaw for name, figure in figures.items() if (flaw := _outside(name, *figure))), "")


def _outside(name: str, value: float, low: float, high: float) -> str:
    return "" if low <= value <= high else f"{name} is {value}, which is not within {low:,} to {high:,}"


def _joined(joined: ReplicaJoined) -> str:
    if not 0 < len(joined.replica) <= MAX_NAME:
        return "a replica without a name, or with an endless one"
    return _range(
        incarnation=(joined.incarnation, 0, MAX_NUMBER),
        num_blocks=(joined.num_blocks, 1, MAX_BLOCKS),
        block_size=(joined.block_size, 1, MAX_BLOCK_SIZE),
        block_bytes=(joined.block_bytes, 1, MAX_BYTES),
        max_batch=(joined.max_batch, 1, MAX_BATCH),
        max_model_len=(joined.max_model_len, 1, MAX_TOKENS),
        prefill_tokens_per_s=(joined.prefill_tokens_per_s, 0, MAX_RATE),
        bytes_per_s=(joined.bytes_per_s, 0, MAX_RATE),
    )


def _pool_joined(joined: HostPoolJoined) -> str:
    if not 0 < len(joined.pool) <= MAX_NAME:
        return "a host pool without a name, or with an endless one"
    return _range(
        incarnation=(joined.incarnation, 0, MAX_NUMBER),
        num_blocks=(joined.num_blocks, 1, MAX_BLOCKS),
        block_bytes=(joined.block_bytes, 1, MAX_BYTES),
        bytes_per_s=(joined.bytes_per_s, 0, MAX_RATE),
    )


def _result(result: Result) -> str:
    """Once per result: what can be said of whole columns at once. Single entries are looked at as they are read."""
    told = result.advances
    num_seqs = len(told.seqs)
    if not num_seqs == len(told.positions) == len(told.num_ids) == len(told.num_hashes):
        return f"advances of {num_seqs} sequences have columns of other lengths"
    if sum(told.num_ids) != len(told.ids):
        return f"advances count {sum(told.num_ids)} tokens and bring {len(told.ids)}"
    if sum(told.num_hashes) * HASH_BYTES != len(told.hashes):
        return f"advances count {sum(told.num_hashes)} names and bring {len(told.hashes)} bytes"
    for outcome in result.transferred:
        flaw = _range(seconds=(outcome.seconds, 0, 1e9), size_bytes=(outcome.size_bytes, 0, MAX_BYTES))
        if flaw:
            return f"transfer {outcome.transfer:#x}: {flaw}"
    if not (0 <= result.step_seconds <= 1e9 and 0 <= result.prefill_tokens_per_s <= MAX_RATE):
        return f"rates of {result.step_seconds} s a step and {result.prefill_tokens_per_s} tokens/s"
    if not (0 <= result.prefill_waiting <= MAX_NUMBER and 0 <= result.dry <= MAX_NUMBER):
        return f"{result.prefill_waiting} tokens that wait and {result.dry} dry steps"
    if result.unreached and (len(result.unreached) > MAX_GATEWAYS or max(map(len, result.unreached)) > MAX_NAME):
        return f"{len(result.unreached)} gateways that take no tokens, or endless names of such"
    return ""


def _asked(asked: Submit | Pin) -> str:
    if not 0 < len(asked.request_id) <= MAX_NAME:
        return "a request without a name, or with an endless one"
    if not 0 < len(asked.prompt) <= MAX_TOKENS:
        return "the prompt is empty"
    if not {HASH_BYTES}.issuperset(map(len, asked.hashes)):
        return f"names of blocks have {HASH_BYTES} bytes each"
    return ""


def _submit(submit: Submit) -> str:
    # What else its sampling says was looked at when it was read.
    flaw = (
        _asked(submit)
        or _outside("priority", submit.priority, -MAX_PRIORITY, MAX_PRIORITY)
        or _outside("max_tokens", submit.sampling.max_tokens or 0, 1, MAX_TOKENS)
    )
    if not flaw and len(submit.look) > MAX_LOOK:
        flaw = f"its look has {len(submit.look):,} characters, more than {MAX_LOOK:,}"
    if not flaw and submit.deadline is not None and math.isnan(submit.deadline):
        flaw = "the deadline is not a number"
    return flaw


def _find(find: Find) -> str:
    return "" if 0 < len(find.request_id) <= MAX_NAME else "a request without a name, or with an endless one"


def _pin(pin: Pin) -> str:
    return _asked(pin) or ("the end of the pin is not a number" if math.isnan(pin.until) else "")


def _sealed(sealed: Sealed) -> str:
    if len(sealed.outputs) != len(sealed.finished):
        return f"outputs of {len(sealed.outputs)} sequences, and {len(sealed.finished)} that say whether they ended"
    return ""


def _gateway_state(state: GatewayState) -> str:
    """Its requests are looked at one by one as they are taken: one that is wrong loses none of the others."""
    return "" if state.gateway else "a gateway without a name"


def flaw_of_open(submit: Submit, attempt: int, num_outputs: int, num_finished: int) -> str:
    """What is wrong with an open request that a gateway tells a new scheduler."""
    flaw = _submit(submit) or _range(attempt=(attempt, 0, MAX_NUMBER))
    # Of a beam group the hypotheses are told that were asked for.
    num_parts = num_outputs if submit.sampling.width else submit.sampling.n
    if not flaw and (not num_parts == num_outputs == num_finished or not num_outputs):
        flaw = f"it has {num_parts} sequences; {num_outputs} outputs and {num_finished} ends are told"
    return flaw


def _replica_state(state: ReplicaState) -> str:
    joined = state.joined
    flaw = _joined(joined)
    if flaw:
        return flaw
    num_blocks = joined.num_blocks
    if any(not 0 <= block < num_blocks or len(name) != HASH_BYTES for block, name in state.cached):
        return f"names of blocks that its pool of {num_blocks} has not, or of other than {HASH_BYTES} bytes"
    for transfer in state.transfers:
        if transfer.mine and not 0 <= min(transfer.mine) <= max(transfer.mine) < num_blocks:
            return f"transfer {transfer.transfer:#x} has blocks that its pool of {num_blocks} has not"
    seqs = [resident.seq for resident in state.residents]
    if len(set(seqs)) != len(seqs):
        return "two residents have one number"
    for resident in state.residents:
        flaw = _resident(resident, joined)
        if flaw:
            return f"resident {resident.seq:#x} of {resident.start.request_id}: {flaw}"
    if len(state.departed) > MAX_DEPARTED:
        return f"{len(state.departed):,} sequences that have left are told, more than {MAX_DEPARTED:,}"
    for departed in state.departed:
        flaw = _departed(departed)
        if flaw:
            return f"{departed.start.request_id}, which has left: {flaw}"
    return _shared(state)


def _departed(departed: Departed) -> str:
    start = departed.start
    flaw = _start(start, departed.seq, departed.index)
    if not flaw and len(start.tokens) > start.num_prompt + required(start.sampling.max_tokens):
        flaw = f"it has {len(start.tokens)} tokens, and {start.sampling.max_tokens} behind its prompt were asked for"
    return flaw or ("" if departed.reason in ENDS else "it was let go without a reason")


def _start(start: Start, seq: int, index: int) -> str:
    sampling = start.sampling
    flaw = _range(
        seq=(seq, 1, MAX_NUMBER),
        max_tokens=(sampling.max_tokens or 0, 1, MAX_TOKENS),
        index=(index, 0, (1 if sampling.width else sampling.n) - 1),
        attempt=(start.attempt, 1, MAX_NUMBER),
        num_prompt=(start.num_prompt, 1, len(start.tokens)),
        precedence=(start.precedence, -(MAX_PRIORITY << 40), MAX_PRIORITY << 40),
        # NaN fails this too.
        grace_s=(start.grace_s, 0, 1e9),
    )
    return flaw or ("" if start.request_id else "it has no name")


def _resident(resident: Resident, joined: ReplicaJoined) -> str:
    start, table = resident.start, resident.table
    flaw = _start(start, resident.seq, resident.index) or _range(
        lease_end=(resident.lease_end, 0, len(table) * joined.block_size),
        # What beams have written their worker alone knows.
        position=(resident.position, 0, resident.lease_end),
    )
    if flaw:
        return flaw
    if len(resident.tokens) < start.num_prompt:
        return "it has fewer tokens than its prompt"
    if table and not 0 <= min(table) <= max(table) < joined.num_blocks:
        return f"its table has blocks that its pool of {joined.num_blocks} has not"
    if len(set(table)) != len(table):
        return "a block stands twice in its table"
    return ""


def _shared(state: ReplicaState) -> str:
    """What one can write, none but forks of its own request hold, and those only full blocks of their prompt."""
    holders: dict[int, list[tuple[Resident, int]]] = {}
    for resident in state.residents:
        for logical, block in enumerate(resident.table):
            holders.setdefault(block, []).append((resident, logical))
    size = state.joined.block_size
    for block, several in holders.items():
        if len(several) == 1:
            continue
        for resident, logical in several:
            first = resident.position // size
            if resident.start.sampling.width:
                first = min(first, resident.start.num_prompt // size)
            if logical < first:
                continue
            is_one = all(other.start.request_id == resident.start.request_id for other, _ in several)
            if not is_one or (logical + 1) * size > resident.start.num_prompt:
                return f"block {block} can be written by {resident.start.request_id}, and others hold it"
    return ""


def _cancel(cancel: Cancel) -> str:
    length = len(cancel.code) + len(cancel.detail)
    return "" if length <= MAX_DETAIL else f"its reason has {length:,} characters, more than {MAX_DETAIL:,}"


def _stop_at(stop: StopAt) -> str:
    return _range(index=(stop.index, 0, MAX_SEQUENCES), num_outputs=(stop.num_outputs, 0, MAX_TOKENS))


_LOOK: Mapping[type, Callable[[Any], str]] = {
    Submit: _submit,
    Adopt: lambda adopt: _submit(adopt.submit),
    Find: _find,
    Pin: _pin,
    StopAt: _stop_at,
    Cancel: _cancel,
    Sealed: _sealed,
    Result: _result,
    ReplicaJoined: _joined,
    HostPoolJoined: _pool_joined,
    ReplicaState: _replica_state,
    GatewayState: _gateway_state,
}

ENDS = frozenset(Reason) - {Reason.NONE}
"""Reasons for which an attempt can end."""
