"""Beam groups on a worker whose scheduler is the real one: every word between them as bytes, drops in the middle of a
search, a new scheduler, logits that are no numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.centre.scheduler import Scheduler
from cluster.gateway.door.log import RequestLog
from cluster.gateway.texts import Texts, take_tokens
from cluster.messages import (
    Done,
    Event,
    GatewayState,
    OpenRequest,
    Order,
    Plan,
    Reason,
    Refused,
    ReplicaState,
    Result,
    Submit,
    Tokens,
    ids,
)
from cluster.sampling import SamplingParams
from cluster.settings import SchedulerSettings, WorkerSettings
from cluster.wire.plans import decode_plan, decode_result, encode_plan, encode_result
from cluster.wire.state import fill_replica_state, replica_state_from
from cluster.wire.tokens import fill_tokens, tokens_from
from protos.quire.v1 import control_pb2, front_pb2
from tests.engine import models
from worker.worker import Worker

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 4
PROMPT = models.prompts([10], seed=2)[0]
BEAMS = SamplingParams(beam_width=4, n=3, max_tokens=24, length_penalty=0.8, early_stopping="never")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def want(folder: Path) -> models.Found:
    return models.beams(models.reference(folder), PROMPT, BEAMS)


class Pair:
    """One scheduler and one worker. Time stands still until it is moved."""

    def __init__(self, folder: Path, params: SamplingParams = BEAMS, token_budget: int = 8) -> None:
        settings = WorkerSettings(
            model=str(folder), dtype="float32", block_size=SIZE, kv_blocks=60, max_batch=6,
            token_budget=token_budget, debug=True, hash_key=b"k" * 16, show_progress=False,
        )  # fmt: skip
        self.worker = Worker(settings, replica="r0", incarnation=3)
        self.settings = SchedulerSettings(rebuild_s=1.0)
        self.scheduler = Scheduler(self.settings)
        self.now = 0.0
        sampling = params.resolve(
            {"eos_token_id": models.EOS}, vocab_size=models.VOCAB, max_model_len=200, num_prompt_tokens=10, seed=0
        )
        digest = self.worker.joined().digest
        self.submit = Submit("q", "g", 7, str(folder), "", ids(PROMPT), (), sampling, digest=digest)
        self.log = RequestLog(params.n)
        self.texts = Texts(params.n, lambda: None)
        self.attempts: set[int] = set()
        self.news: list[Order] = []
        self.results: list[Result] = []
        self.turn(self.worker.joined(), self.submit)

    def turn(self, *events: Event) -> None:
        for order in self.scheduler.turn(events, self.now):
            if isinstance(order, Plan):
                self.attempts.update(start.attempt for start in order.starts)
                self.worker.obey(decode_plan(encode_plan(order)))
            else:
                self.news.append(order)
        self.scheduler.check()
        self.worker.desk.check()

    def step(self) -> int:
        """One step of the worker; its result and tokens go where they belong."""
        ran = self.worker.step()
        result = self.worker.take_result()
        for tokens in self.worker.take_tokens().get("g", []):
            take_tokens(self.log, self.texts, self._sent(tokens))
        if result is not None:
            self.results.append(result)
            self.turn(decode_result(encode_result(result)))
        return ran

    @staticmethod
    def _sent(tokens: Tokens) -> Tokens:
        message = front_pb2.TokenBatch()
        fill_tokens(message, [tokens])
        (received,) = tokens_from(message)
        assert received == tokens
        return received

    def run(self) -> None:
        for _ in range(200):
            if any(isinstance(order, Done) for order in self.news):
                break
            self.step()
        assert any(isinstance(order, Done) for order in self.news), "the request has not ended after 200 steps"
        replica = self.scheduler.replicas["r0"]
        assert replica.ledger.num_available == replica.ledger.num_blocks
        assert not self.worker.searches and self.worker.desk.is_idle

    def found(self) -> models.Found:
        return [(list(one.ids), one.score) for one in self.log.sequences]


def assert_same(found: models.Found, want: models.Found) -> None:
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in want]
    assert [score for _, score in found] == pytest.approx([score for _, score in want], abs=1e-4)


def test_all_words_survive_the_wire(folder: Path, want: models.Found) -> None:
    pair = Pair(folder)
    pair.run()
    assert_same(pair.found(), want)
    groups = [group for result in pair.results for group in result.groups]
    # Asked once for each lease: 24 tokens are 6 blocks.
    assert 4 <= len(groups) <= 7
    for group in groups:
        held = [block for table in group.tables for block in table] + list(group.purse)
        assert len(group.tables) == 4
        # The prompt's two full blocks are shared by all; of what is behind them no beam lacks a tail of its own.
        assert {tuple(table[:2]) for table in group.tables} == {tuple(group.tables[0][:2])}
        if group.position % SIZE:
            assert len({table[-1] for table in group.tables}) == 4
        assert not set(group.purse) & {block for table in group.tables for block in table}
        assert len(set(held)) <= 2 + 4 * 7
    (stopped,) = [one for result in pair.results for one in result.stopped]
    assert list(stopped.ids) == want[0][0]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 9, 14])
def test_dropped_at_any_step_it_starts_again(folder: Path, want: models.Found, num_steps: int) -> None:
    pair = Pair(folder)
    for _ in range(num_steps):
        pair.step()
    request = pair.scheduler.requests["q"]
    pair.scheduler.pressure.preempt(request, "a test wants its blocks", "memory")
    # Its blocks stay held until the worker has answered.
    pair.turn()
    assert pair.log.num_tokens == 0
    pair.run()
    assert pair.attempts == {1, 2}
    assert_same(pair.found(), want)


@pytest.mark.parametrize("num_steps", [1, 2, 11])
def test_a_new_scheduler_takes_back_every_block_of_a_group(folder: Path, want: models.Found, num_steps: int) -> None:
    pair = Pair(folder)
    for _ in range(num_steps):
        pair.step()
    lost = pair.scheduler.requests["q"].sequences[0]
    held = sorted(lost.table)
    message = control_pb2.ReplicaState()
    fill_replica_state(message, pair.worker.hold_for(2))
    state: ReplicaState = replica_state_from(message)
    assert sorted(state.residents[0].table) == held
    pair.scheduler = Scheduler(pair.settings, epoch=2)
    nothing = tuple(ids() for _ in range(BEAMS.n))
    known = OpenRequest(pair.submit, 1, nothing, (Reason.NONE,) * BEAMS.n)
    pair.turn(state, GatewayState("g", (known,)))
    pair.now = 10.0
    pair.run()
    assert pair.attempts == {1, 2}
    assert_same(pair.found(), want)


def test_logits_that_are_no_numbers_fail_the_whole_request(folder: Path) -> None:
    pair = Pair(folder)
    for _ in range(5):
        pair.step()
    group = next(iter(pair.worker.desk.beams.groups.values()))
    tail = pair.worker.desk.rows.table(int(group.rows[2]))[-1]
    pair.worker.parts.pool.forget([tail])
    pair.run()
    assert [one.reason for one in pair.log.sequences] == [Reason.FAILED] * 3
    assert "not numbers" in pair.log.sequences[0].detail
    assert any(isinstance(order, Refused) and "not numbers" in order.detail for order in pair.news)


def test_more_beams_than_a_step_has_tokens_are_refused(folder: Path) -> None:
    pair = Pair(folder, replace(BEAMS, beam_width=5, n=2), token_budget=4)
    pair.run()
    assert [one.reason for one in pair.log.sequences] == [Reason.FAILED] * 2
    assert "token_budget is 4" in pair.log.sequences[1].detail
