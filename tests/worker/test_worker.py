"""The worker under plans written by hand: order, numbers, epochs, leases, drops, copies, what it tells back."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.centre.starts import PIN_SAMPLING
from cluster.errors import ProtocolError
from cluster.hashing import HASH_BYTES, BlockHasher
from cluster.messages import Copy, Drop, Extends, Fork, Plan, Reason, Reroute, Result, Revoke, Start, Tokens, ids
from cluster.sampling import SamplingParams
from cluster.settings import WorkerSettings
from tests.engine import models
from worker.worker import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 4
KEY = b"k" * 16
PROMPT = models.prompts([10], seed=2)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def greedy(folder: Path) -> list[int]:
    return models.greedy(models.reference(folder), PROMPT, 24)


@pytest.fixture
def worker(folder: Path) -> Worker:
    settings = WorkerSettings(
        model=str(folder), dtype="float32", block_size=SIZE, kv_blocks=40, max_batch=4, token_budget=6, debug=True,
        hash_key=KEY, show_progress=False,
    )  # fmt: skip
    return Worker(settings, replica="r0", incarnation=3)


def plan(number: int, epoch: int = 1, **orders: Any) -> Plan:
    return Plan(replica="r0", incarnation=3, epoch=epoch, number=number, ahead=2, result=0, **orders)


def start(seq: int = 1, **changes: Any) -> Start:
    sampling = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True).resolve(
        {}, vocab_size=models.VOCAB, max_model_len=100, num_prompt_tokens=len(PROMPT), seed=0
    )
    fields: dict[str, Any] = {
        "seq": seq,
        "request_id": f"request {seq}",
        "index": 0,
        "attempt": 1,
        "gateway": "g",
        "route": seq,
        "tokens": ids(PROMPT),
        "num_prompt": len(PROMPT),
        "position": 0,
        "table": ids([7, 3, 9]),
        "lease_end": 12,
        "precedence": seq,
        "sampling": sampling,
        "salt": b"",
        "chain": b"c" * HASH_BYTES,
    }
    return Start(**{**fields, **changes})


def extends(seq: int, lease_end: int, first: int, blocks: list[int]) -> Extends:
    made = Extends()
    made.add(seq, lease_end, first, ids(blocks))
    return made


def run_dry(worker: Worker) -> None:
    for _ in range(100):
        if not worker.step():
            return
    raise AssertionError("the worker ran 100 steps on a lease that is shorter")


def result_of(worker: Worker) -> Result:
    result = worker.take_result()
    assert result is not None
    return result


def tokens_of(messages: list[Tokens]) -> list[int]:
    return [token for message in messages for token in message.ids]


def test_runs_on_its_lease_and_no_further(worker: Worker, greedy: list[int]) -> None:
    assert not worker.step()
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    # Positions 0 to 11 are written, so tokens up to length 13 are known.
    result = result_of(worker)
    assert (result.replica, result.incarnation, result.epoch, result.number, result.plan) == ("r0", 3, 1, 1, 1)
    assert list(result.advances.ids) == greedy[: len(result.advances.ids)]
    assert result.dry == 1
    assert tokens_of(worker.take_tokens()["g"]) == greedy[:3]
    assert worker.take_tokens() == {}
    worker.obey(plan(2, extends=extends(1, 16, 3, [20])))
    run_dry(worker)
    assert tokens_of(worker.take_tokens()["g"]) == greedy[3:7]


def test_reports_prefill_ahead_of_need_and_standing_still(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(),)))
    worker.step()
    # A chunk of six tokens has filled a block of the prompt: others may wait for it.
    first = result_of(worker)
    assert (list(first.advances.seqs), list(first.advances.positions), list(first.advances.ids)) == ([1], [6], [])
    worker.step()
    # Ten positions are written and the lease ends at 12: asked for ahead of need.
    second = result_of(worker)
    assert (list(second.advances.positions), list(second.advances.ids)) == ([10], greedy[:1])
    worker.step()
    assert worker.take_result() is None
    worker.step()
    # It has not come: asked for once more, and no further.
    assert list(result_of(worker).advances.positions) == [12]
    assert not worker.step()
    assert worker.take_result() is None


def test_steps_in_one_go_end_once_something_has_come(folder: Path, greedy: list[int]) -> None:
    settings = WorkerSettings(
        model=str(folder), dtype="float32", block_size=SIZE, kv_blocks=40, max_batch=4, hash_key=KEY,
        show_progress=False,
    )  # fmt: skip
    worker = Worker(settings, replica="r0", incarnation=3)
    ear, mouth = os.pipe()
    worker.watch(ear)
    worker.obey(replace(plan(1, starts=(start(table=ids(range(12)), lease_end=40),)), ahead=4))
    assert worker.step_within(0.0) == 1
    # Three, for the lease has to be renewed while one slot of it is left; none of these takes a second.
    assert worker.step_within(100.0) == 3
    os.write(mouth, b"!")
    assert [worker.step_within(100.0) for _ in range(3)] == [1, 1, 1]
    os.read(ear, 1)
    assert worker.step_within(100.0) == 3
    assert tokens_of(worker.take_tokens()["g"]) == greedy[:10]
    os.close(ear)
    os.close(mouth)


def test_names_of_generated_blocks(worker: Worker, greedy: list[int]) -> None:
    hasher = BlockHasher(KEY, worker.joined().digest, b"", SIZE)
    chain = hasher.prompt(ids(PROMPT))[-1]
    worker.obey(plan(1, starts=(start(table=ids(range(12)), lease_end=33, chain=chain),)))
    run_dry(worker)
    result = result_of(worker)
    stopped = result.stopped[0]
    assert (stopped.reason, stopped.position) == (Reason.LENGTH, 33)
    names = result.advances.hashes + stopped.hashes
    known = ids(PROMPT + greedy)
    wanted = hasher.prompt(known)
    # Blocks 0 and 1 are the prompt's, which the gateway names; 2 to 7 were filled here.
    assert [names[at : at + HASH_BYTES] for at in range(0, len(names), HASH_BYTES)] == list(wanted[2:8])
    assert list(result.advances.ids) + list(stopped.ids) == greedy
    last = worker.take_tokens()["g"][-1]
    assert (last.reason, tokens_of([last])) == (Reason.LENGTH, greedy)


def test_each_plan_is_the_next_one_for_this_life(worker: Worker, greedy: list[int]) -> None:
    """The link takes nothing twice and leaves nothing out; what comes all the same is obeyed in no part."""
    first = plan(1, starts=(start(),))
    worker.obey(first)
    for wrong, said in (
        (first, "waits for plan 2 of epoch 1; plan 1 of epoch 1"),
        (plan(3), "waits for plan 2 of epoch 1; plan 3"),
        (replace(plan(2, drops=(Drop(1),)), incarnation=2), "for incarnation 2 came"),
    ):
        with pytest.raises(ProtocolError, match=said):
            worker.obey(wrong)
    run_dry(worker)
    assert tokens_of(worker.take_tokens()["g"]) == greedy[:3]


def test_a_new_scheduler_begins_anew_and_the_old_one_is_deaf(worker: Worker) -> None:
    worker.obey(plan(1, epoch=4, starts=(start(),)))
    worker.step()
    assert result_of(worker).epoch == 4
    worker.obey(plan(1, epoch=5, extends=extends(1, 16, 3, [20])))
    assert result_of(worker).number == 1
    with pytest.raises(ProtocolError, match="waits for plan 2 of epoch 5"):
        worker.obey(plan(2, epoch=4, drops=(Drop(1),)))
    run_dry(worker)
    assert worker.take_tokens()["g"][-1].reason is Reason.NONE


def test_extends_may_come_twice(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    worker.obey(plan(2, extends=extends(1, 16, 3, [20])))
    worker.obey(plan(3, extends=extends(1, 20, 3, [20, 21])))
    run_dry(worker)
    assert tokens_of(worker.take_tokens()["g"]) == greedy[:11]


def test_drop_tells_all_that_is_known(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    told = list(result_of(worker).advances.ids)
    worker.obey(plan(2, drops=(Drop(1), Drop(99))))
    (stopped,) = result_of(worker).stopped
    assert (stopped.seq, stopped.reason, stopped.position) == (1, Reason.DROPPED, 12)
    assert told + list(stopped.ids) == greedy[:3]
    # What was not sent goes out, without an end: the request goes on elsewhere.
    (message,) = worker.take_tokens()["g"]
    assert (list(message.ids), message.reason) == (greedy[:3], Reason.NONE)
    assert not worker.step()


def test_revoke_holds_from_the_block_that_is_being_written(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(table=ids([7, 3, 9, 11, 12]), lease_end=20),)))
    worker.step()
    worker.obey(plan(2, revokes=(Revoke(1, 2), Revoke(99, 2))))
    result = result_of(worker)
    # Six positions are written, in blocks of four: the first two blocks stay. Who has ended has no lease to give.
    assert [(one.seq, one.lease_end) for one in result.revoked] == [(1, 8)]
    assert list(result.advances.positions)[-1] == 6
    run_dry(worker)
    # It stands still at its new end, and asks for more as with any lease.
    assert list(result_of(worker).advances.positions) == [8]
    # The blocks behind that end are others' now.
    worker.obey(plan(3, extends=extends(1, 16, 2, [20, 21])))
    run_dry(worker)
    assert tokens_of(worker.take_tokens()["g"]) == greedy[:7]
    resident = worker.hold_for(2).residents[0]
    assert list(resident.table) == [7, 3, 20, 21] and resident.lease_end == 16


def test_a_revoke_never_lengthens_a_lease(worker: Worker) -> None:
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    worker.obey(plan(2, revokes=(Revoke(1, 40),)))
    assert [(one.seq, one.lease_end) for one in result_of(worker).revoked] == [(1, 12)]


def test_a_new_attempt_repeats_what_is_known(worker: Worker, greedy: list[int]) -> None:
    tokens = ids(PROMPT + greedy[:5])
    worker.obey(plan(1, starts=(start(attempt=2, tokens=tokens, table=ids([5, 6, 7, 8, 9]), lease_end=20),)))
    assert [(m.attempt, m.position, list(m.ids)) for m in worker.take_tokens()["g"]] == [(2, 0, greedy[:5])]
    run_dry(worker)
    assert [(m.position, list(m.ids)) for m in worker.take_tokens()["g"]] == [(5, greedy[5:11])]


def test_reroute_tells_the_new_gateway_everything(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    worker.take_tokens()
    worker.obey(plan(2, reroutes=(Reroute(1, "h", 77),)))
    assert [(m.route, m.position, list(m.ids)) for m in worker.take_tokens()["h"]] == [(77, 0, greedy[:3])]


def test_another_gateway_is_told_the_logprobs_again(worker: Worker, greedy: list[int]) -> None:
    params = replace(start().sampling, logprobs=2, prompt_logprobs=1)
    worker.obey(plan(1, starts=(start(sampling=params),)))
    run_dry(worker)
    (told,) = worker.take_tokens()["g"]
    assert list(told.ids) == greedy[:3] and len(told.logprobs) == 3 and len(told.prompt_logprobs) == len(PROMPT)
    worker.obey(plan(2, reroutes=(Reroute(1, "h", 77),)))
    (again,) = worker.take_tokens()["h"]
    assert (again.position, again.ids, again.logprobs) == (0, told.ids, told.logprobs)
    assert again.prompt_logprobs == told.prompt_logprobs
    # A new attempt at what an old one wrote: those tokens come without, the new ones with.
    worker.obey(plan(3, drops=(Drop(1),), starts=(start(2, sampling=params, tokens=ids([*PROMPT, *greedy[:2]])),)))
    run_dry(worker)
    old, new = worker.take_tokens()["g"]
    assert list(old.ids) == greedy[:2] and not old.logprobs
    assert (new.position, new.ids, new.logprobs) == (2, told.ids[2:], told.logprobs[2:])


def test_a_worker_computes_what_the_scheduler_pins(worker: Worker) -> None:
    worker.obey(plan(1, starts=(start(sampling=PIN_SAMPLING),)))
    run_dry(worker)
    (stopped,) = result_of(worker).stopped
    assert stopped.reason is Reason.LENGTH and len(stopped.ids) == 1


def test_copy_comes_before_the_start_that_reads_it(worker: Worker, greedy: list[int]) -> None:
    worker.obey(plan(1, starts=(start(),)))
    run_dry(worker)
    worker.take_tokens()
    # The same prompt again: two full blocks shared, one slot of the third copied.
    second = start(seq=2, position=9, table=ids([7, 3, 30]), route=2)
    worker.obey(plan(2, copies=(Copy(9, 30, 1),), starts=(second,)))
    run_dry(worker)
    assert [(m.route, list(m.ids)) for m in worker.take_tokens()["g"]] == [(2, greedy[:3])]


@pytest.mark.parametrize("num_prompt", [8, 10])
def test_forks_copy_the_tail_and_go_on(worker: Worker, folder: Path, num_prompt: int) -> None:
    prompt = PROMPT[:num_prompt]
    wanted = models.greedy(models.reference(folder), prompt, 24)
    forks = (
        Fork(2, 1, ids([7, 3, 10]), 12, ids()),
        Fork(3, 2, ids([7, 3, 11, 12, 13]), 20, ids(wanted[:4])),
    )
    worker.obey(plan(1, starts=(start(tokens=ids(prompt), num_prompt=num_prompt, forks=forks),)))
    run_dry(worker)
    found: dict[int, list[int]] = {}
    for message in worker.take_tokens()["g"]:
        assert message.position == len(found.get(message.index, []))
        found.setdefault(message.index, []).extend(message.ids)
    known = 12 + 1 - num_prompt
    assert found == {0: wanted[:known], 1: wanted[:known], 2: wanted[: 20 + 1 - num_prompt]}


def test_a_fork_goes_with_its_parent_that_never_wrote_the_prompt(worker: Worker) -> None:
    worker.obey(plan(1, starts=(start(forks=(Fork(2, 1, ids([7, 3, 10]), 12, ids()),)),)))
    worker.obey(plan(2, drops=(Drop(1), Drop(2))))
    assert [(one.seq, one.reason) for one in result_of(worker).stopped] == [(1, Reason.DROPPED), (2, Reason.DROPPED)]
    assert not worker.step()
    worker.obey(plan(3, starts=tuple(start(seq=seq, table=ids([seq]), lease_end=4) for seq in range(10, 14))))
    assert worker.step()


def test_a_start_that_cannot_be_obeyed_fails_alone(worker: Worker, greedy: list[int]) -> None:
    bad = start(seq=5, tokens=ids([*PROMPT[:-1], models.VOCAB]), route=5)
    worker.obey(plan(1, starts=(bad, start())))
    run_dry(worker)
    (stopped,) = result_of(worker).stopped
    assert (stopped.seq, stopped.reason) == (5, Reason.FAILED)
    assert f"0 to {models.VOCAB - 1}" in stopped.detail
    by_route = {message.route: message for message in worker.take_tokens()["g"]}
    assert by_route[5].reason is Reason.FAILED and by_route[5].detail == stopped.detail
    assert list(by_route[1].ids) == greedy[:3]


def test_a_block_that_is_not_ones_own_shows(worker: Worker) -> None:
    """Pretending that a position was computed reads a block that nobody wrote: NaN, and the request fails."""
    worker.obey(plan(1, starts=(start(position=8),)))
    run_dry(worker)
    (stopped,) = result_of(worker).stopped
    assert (stopped.reason, "not numbers" in stopped.detail) == (Reason.FAILED, True)
