"""Forks of a desk: what is told of a prompt that they share, and when."""

from __future__ import annotations

import numpy as np

from cluster.desk.desk import Desk
from cluster.desk.words import DeskSettings, Drawn, Flight
from cluster.messages import Fork, Plan, ReplicaJoined, Start, ids
from cluster.sampling import SamplingParams

JOINED = ReplicaJoined(
    replica="w0",
    incarnation=1,
    node="node0",
    model="m",
    num_blocks=16,
    block_size=4,
    block_bytes=64,
    fingerprint="f",
    max_batch=4,
    max_model_len=32,
    prefill_tokens_per_s=1.0,
    bytes_per_s=1.0,
    digest=b"weights",
)


def drawn(flight: Flight, token: int) -> Drawn:
    count = len(flight.rows)
    return Drawn(np.full(count, token), np.zeros(count, np.bool_), np.zeros((0, count), np.int64))


def test_a_prompt_that_is_still_written_is_not_told_as_full_by_the_forks_that_go_on_behind_it() -> None:
    desk = Desk(JOINED, DeskSettings(token_budget=16, vocab_size=100, hash_key=b"key"))
    sampling = SamplingParams(n=2, temperature=1.0, seed=1, max_tokens=4, eos_token_ids=())
    start = Start(
        seq=1,
        request_id="r",
        index=0,
        attempt=1,
        gateway="g0",
        route=1,
        tokens=ids(range(1, 8)),
        num_prompt=7,
        position=0,
        table=ids((0, 1, 2)),
        lease_end=10,
        precedence=1,
        sampling=sampling,
        salt=b"",
        chain=b"the name of its only full block",
        forks=(Fork(2, 1, ids((0, 3, 4)), 10, ids()),),
    )
    desk.obey(Plan("w0", 1, epoch=1, number=1, ahead=2, result=0, starts=(start,)))
    flight = desk.launched(desk.next())
    assert flight.woken, "the fork goes on behind the step that writes the prompt"
    assert desk.hold_for(2).cached == ()
    desk.check()
    desk.retire(flight, drawn(flight, 9))
    desk.check()
    assert [block for block, _ in desk.hold_for(3).cached] == [0]
