"""The link between workers and gateways: its terms, and tokens and logprobs between dataclasses and bytes.

A batch holds the tokens of many sequences as columns: a step of a worker is one message to each gateway. The worker
calls, by the gateway's name; what a gateway has not taken goes to its next start. What a peer sent wrong raises
`ProtocolError`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from cluster.errors import ProtocolError
from cluster.links.terms import Terms
from cluster.messages import Logprobs, Tokens
from cluster.wire.plans import REASONS, ids_from, longs_from, parsed
from protos import NEWEST_PROTOCOL, OLDEST_PROTOCOL
from protos.quire.v1 import common_pb2
from protos.quire.v1 import front_pb2 as pb

GREETING = b"QTK2"
SILENCE_S = 8.0
"""Who is gone the scheduler finds out, and sooner; a thousand workers must not fill a gateway's time with pulses."""


def terms() -> Terms:
    return Terms(OLDEST_PROTOCOL, NEWEST_PROTOCOL, silence_s=SILENCE_S, loses=False, keeps=True)


def batch_to(tokens: Sequence[Tokens]) -> bytes:
    message = pb.TokenBatch()
    fill_tokens(message, tokens)
    return message.SerializeToString()


def read_batch(raw: bytes) -> list[Tokens]:
    return tokens_from(parsed(pb.TokenBatch, raw))


def read_down(raw: bytes) -> None:
    """A gateway has nothing to say to a worker but how far it has come."""
    raise ProtocolError(f"a gateway says {len(raw):,} bytes to a worker")


def fill_tokens(message: pb.TokenBatch, tokens: Sequence[Tokens]) -> None:
    routes, indexes, attempts, positions, counts = array("q"), array("i"), array("i"), array("i"), array("i")
    flat = bytearray()
    for entry, part in enumerate(tokens):
        routes.append(part.route)
        indexes.append(part.index)
        attempts.append(part.attempt)
        positions.append(part.position)
        counts.append(len(part.ids))
        flat += part.ids
        if part.logprobs or part.prompt_logprobs or part.detail or part.score:
            _fill_extra(message.extras.add(), entry, part)
    message.routes = routes.tobytes()
    message.indexes = indexes.tobytes()
    message.attempts = attempts.tobytes()
    message.positions = positions.tobytes()
    message.counts = counts.tobytes()
    message.ids = bytes(flat)
    reasons = bytes([part.reason for part in tokens])
    if any(reasons):
        message.reasons = reasons


def tokens_from(message: pb.TokenBatch) -> list[Tokens]:
    routes = longs_from(message.routes)
    indexes, attempts = ids_from(message.indexes), ids_from(message.attempts)
    positions, counts, ids = ids_from(message.positions), ids_from(message.counts), ids_from(message.ids)
    num = len(routes)
    reasons = message.reasons or bytes(num)
    if not num == len(indexes) == len(attempts) == len(positions) == len(counts) == len(reasons):
        raise ProtocolError(f"a batch of tokens of {num} sequences has columns of other lengths")
    if sum(counts) != len(ids) or (num and min(counts) < 0):
        raise ProtocolError(f"a batch of tokens counts {sum(counts)} ids and brings {len(ids)}")
    if num and max(reasons) >= len(REASONS):
        raise ProtocolError(f"a batch of tokens has reason {max(reasons)}; this side knows 0 to {len(REASONS) - 1}")
    batch: list[Tokens] = []
    start = 0
    for entry in range(num):
        end = start + counts[entry]
        batch.append(
            Tokens(
                routes[entry],
                indexes[entry],
                attempts[entry],
                positions[entry],
                ids[start:end],
                REASONS[reasons[entry]],
            )
        )
        start = end
    for extra in message.extras:
        if extra.entry >= num or extra.entry < 0:
            raise ProtocolError(f"a batch of {num} entries has something on entry {extra.entry}")
        batch[extra.entry] = _with_extra(batch[extra.entry], extra)
    return batch


def _fill_extra(message: pb.TokenExtra, entry: int, tokens: Tokens) -> None:
    message.entry = entry
    message.detail = tokens.detail
    message.score = tokens.score
    for logprob in tokens.logprobs:
        fill_logprob(message.logprobs.add(), logprob)
    for prompt_logprob in tokens.prompt_logprobs:
        part = message.prompt_logprobs.add()
        if prompt_logprob is not None:
            fill_logprob(part.logprob, prompt_logprob)


def _with_extra(tokens: Tokens, extra: pb.TokenExtra) -> Tokens:
    return Tokens(
        tokens.route,
        tokens.index,
        tokens.attempt,
        tokens.position,
        tokens.ids,
        tokens.reason,
        tuple([logprob_from(part) for part in extra.logprobs]),
        extra.detail,
        prompt_logprobs_from(extra.prompt_logprobs),
        extra.score,
    )


def fill_logprob(message: common_pb2.Logprob, logprob: Logprobs) -> None:
    message.token = logprob.token
    message.logprob = logprob.logprob
    message.rank = logprob.rank
    for token, value in logprob.top:
        message.top.add(token=token, logprob=value)


def logprob_from(message: common_pb2.Logprob) -> Logprobs:
    top = tuple([(entry.token, entry.logprob) for entry in message.top])
    return Logprobs(message.token, message.logprob, message.rank, top)


def prompt_logprobs_from(messages: Iterable[common_pb2.PromptLogprob]) -> tuple[Logprobs | None, ...]:
    return tuple([logprob_from(part.logprob) if part.HasField("logprob") else None for part in messages])
