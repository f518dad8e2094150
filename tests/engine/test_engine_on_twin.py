"""The whole engine on the twin, under schedules that let the device be late: the tokens are those of the CPU engine,
and what would be wrong on a GPU is seen when it is planted."""

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import LLM, SamplingParams
from cluster.errors import ConfigError
from cluster.settings import WorkerSettings
from kernels import reference
from kernels.batch import AttentionBatch
from kernels.device.seam import device_of, find_device
from kernels.device.twin.device import ORDER, OrderFault, card
from tests.engine import models
from worker.batch import StepBuilder
from worker.graphs import DecodeGraphs
from worker.model import loading
from worker.model.model import Model
from worker.model.side_by_side import merged_weight
from worker.model.trial import Trial
from worker.sampling.sampler import Sampled
from worker.state import Int32, Int64
from worker.tables import TableChanges

NUM_SCHEDULES, PARTS = 200, 8
AT_ONCE = 3
MORE = {"max_tokens": 5, "ignore_eos": True}
SETTINGS: dict[str, SamplingParams] = {
    "greedy": SamplingParams(temperature=0, **MORE),
    "long": SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    "drawn": SamplingParams(temperature=0.9, seed=1, **MORE),
    "top-k": SamplingParams(temperature=0.9, top_k=7, seed=2, **MORE),
    "top-p": SamplingParams(temperature=1.1, top_p=0.8, seed=3, **MORE),
    "min-p": SamplingParams(temperature=1.1, top_p=0.8, top_k=20, min_p=0.02, seed=3, **MORE),
    "penalties": SamplingParams(
        temperature=0, repetition_penalty=1.3, presence_penalty=0.2, frequency_penalty=0.1, **MORE
    ),
    "bias": SamplingParams(temperature=0.7, seed=4, logit_bias={5: 3.0, 9: -2.0}, **MORE),
    "banned runs": SamplingParams(temperature=0, bad_words_token_ids=[[5], [18, 18], [114, 7, 9]], **MORE),
    "allowed": SamplingParams(temperature=0.5, seed=1, allowed_token_ids=list(range(20, 90)), **MORE),
    "stops": SamplingParams(temperature=0, min_tokens=2, max_tokens=8, stop_token_ids=list(range(40, 100))),
    "logprobs": SamplingParams(temperature=0.5, seed=1, logprobs=3, **MORE),
    "judged prompt": SamplingParams(temperature=0, prompt_logprobs=2, **MORE),
    "forks": SamplingParams(temperature=0.8, n=3, seed=9, logprobs=1, repetition_penalty=1.1, **MORE),
    "beams": SamplingParams(temperature=0, beam_width=3, n=2, max_tokens=6),
    "judged beams": SamplingParams(
        temperature=0,
        beam_width=2,
        max_tokens=6,
        logprobs=1,
        repetition_penalty=1.2,
        bad_words_token_ids=[[18, 18]],
    ),
    "forced": SamplingParams(temperature=0.7, seed=2, forced_tokens={0: 5, 3: 7}, **MORE),
}
PROMPTS = models.prompts([1, 5, 9, 16, 17, 23, 30, 37, 40, 7, 50, 3, 33, 8, 15, 61, 20], seed=3)
WORK = list(zip(SETTINGS, PROMPTS, strict=True))

Written = list[Any]


def engine(folder: Path, device: str, **settings: Any) -> LLM:
    chosen = {"kv_blocks": 60, "max_batch": 12, "token_budget": 24, "block_size": 8, "dtype": "float32", **settings}
    return LLM(str(folder), device=device, quiet=True, **chosen)


def written(llm: LLM, work: list[tuple[str, list[int]]]) -> dict[str, Written]:
    """What each of these requests comes to, all of them at once."""
    results = llm.generate([prompt for _, prompt in work], [SETTINGS[name] for name, _ in work])
    return {name: _all_of(result) for (name, _), result in zip(work, results, strict=True)}


def _all_of(result: Any) -> Written:
    judged = [sorted(place) for place in (result.prompt_logprobs or [])[1:] if place]
    return [judged, *((one.token_ids, [sorted(place) for place in one.logprobs or []]) for one in result.outputs)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("twin"), "llama", num_hidden_layers=2)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, Written]:
    return written(engine(folder, "cpu"), WORK)


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    made = engine(folder, "twin@0")
    assert made._worker._launcher.graphs is not None
    return made


@pytest.fixture
def late(llm: LLM) -> Iterator[LLM]:
    """As late as can be."""
    ORDER.schedule(0)
    yield llm
    ORDER.schedule(0)


@pytest.mark.parametrize("part", range(PARTS))
def test_tokens_are_those_of_the_cpu_under_every_schedule(
    llm: LLM, wanted: dict[str, Written], seed: int, part: int
) -> None:
    """A few requests of all kinds at once, others in each schedule."""
    for number in range(part, NUM_SCHEDULES, PARTS):
        schedule = seed * NUM_SCHEDULES + number
        ORDER.schedule(schedule)
        work = [WORK[(number * AT_ONCE + place) % len(WORK)] for place in range(AT_ONCE)]
        found = written(llm, work)
        wrong = [name for name in found if found[name] != wanted[name]]
        assert not wrong, f"schedule {schedule}: {wrong} differ"


def test_everything_at_once(llm: LLM, wanted: dict[str, Written]) -> None:
    """Prompts in chunks, more than fit at once, decodes in graphs of several sizes."""
    for schedule in range(8):
        ORDER.schedule(schedule)
        assert written(llm, WORK) == wanted


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "gpt2"])
def test_other_decoders(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind)
    work = [WORK[0], WORK[4], WORK[13]]
    want = written(engine(folder, "cpu"), work)
    llm = engine(folder, "twin@0")
    for schedule in range(4):
        ORDER.schedule(schedule)
        assert written(llm, work) == want


def test_in_debug_mode(folder: Path, wanted: dict[str, Written]) -> None:
    """Blocks without content are unreadable, and nothing of that waits for the device."""
    assert written(engine(folder, "twin@0", debug=True), WORK[::2]) == {name: wanted[name] for name, _ in WORK[::2]}


def test_without_overlap_and_without_graphs(folder: Path, wanted: dict[str, Written]) -> None:
    llm = engine(folder, "twin@0", overlap=False)
    assert written(llm, WORK) == wanted
    llm._worker._launcher.graphs = None
    assert written(llm, WORK) == wanted


def test_any_card_is_served_by_any_thread(folder: Path, wanted: dict[str, Written]) -> None:
    """Kernels go to the current card of a thread: of the one that steps, not of the one that started."""
    llm = engine(folder, "twin:1@0")
    device_of(find_device("twin:0")).bind()
    work, found = WORK[:4], []
    thread = threading.Thread(target=lambda: found.append(written(llm, work)))
    thread.start()
    thread.join()
    assert found == [{name: wanted[name] for name, _ in work}]
    assert llm._worker.parts.pool.bytes.device.index == 1


def test_the_trial_reads_every_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile of a step that reads one block again and again would be too good."""
    read: list[list[int]] = []
    attend = reference._attend

    def noted(q: torch.Tensor, cache: Any, batch: AttentionBatch, *args: Any) -> None:
        used = -(-int(batch.context_len[0]) // cache.block_size)
        read.append(batch.tables[int(batch.rows[0]), :used].tolist())
        attend(q, cache, batch, *args)

    monkeypatch.setattr(reference, "_attend", noted)
    timed: list[list[int]] = []
    time_it = Trial.time

    def timing(self: Trial) -> float:
        seconds = time_it(self)
        timed.append(read[-1])
        return seconds

    monkeypatch.setattr(Trial, "time", timing)
    engine(folder, "twin@0")
    assert timed == [list(range(24 // 8))]


@pytest.mark.parametrize("share", [0.7, 0.9])
def test_a_share_of_the_card_is_what_all_of_it_takes(folder: Path, share: float) -> None:
    """Weights, working space, graphs and pool together, whatever else is on the card; the graphs find their place."""
    gc.collect()
    seam, heap, mebibyte = device_of(find_device("twin:2")), card(2).heap, 1 << 20
    heap.total = 110 * mebibyte
    seam.bind()
    beside = torch.zeros(10 * mebibyte, dtype=torch.uint8, device=seam.device)
    sizes: dict[str, Any] = {"kv_blocks": None, "max_model_len": 1000, "max_batch": 128, "token_budget": 512}
    llm = engine(folder, "twin:2@0", gpu_memory_utilization=share, block_size=256, **sizes)
    assert llm._worker._launcher.graphs is not None
    written(llm, WORK[:4])
    assert heap.num_reserved <= share * heap.total
    budget = llm._worker.parts.budget
    assert budget.kv_bytes + budget.working_bytes + budget.graph_bytes > 0.95 * (share * heap.total - beside.nbytes)
    with pytest.raises(ConfigError, match="no block of KV memory fits"):
        engine(folder, "twin:2@0", gpu_memory_utilization=0.3, block_size=256, **sizes)


@pytest.mark.parametrize(("max_batch", "token_budget"), [(48, 64), (4, 512)], ids=["many rows", "a prompt judged"])
def test_a_full_card_has_room_for_requests_that_ask_for_everything(
    max_batch: int, token_budget: int, tmp_path: Path
) -> None:
    """The first of them as well: what choosing tokens takes, and keeps for each row, is left free beside the pool, and
    the logits of all tokens of a step, for prompts whose tokens are judged."""
    gc.collect()
    seam, heap = device_of(find_device("twin:4")), card(4).heap
    heap.total = 220 << 20
    seam.bind()
    folder = models.build(tmp_path, "llama", num_hidden_layers=1, vocab_size=30_000)
    sizes: dict[str, Any] = {"kv_blocks": None, "max_model_len": 1000, "max_batch": max_batch}
    llm = engine(folder, "twin:4@0", gpu_memory_utilization=1.0, block_size=256, token_budget=token_budget, **sizes)
    budget = llm._worker.parts.budget
    left = budget.free_bytes - budget.working_bytes - budget.graph_bytes - budget.kv_bytes
    beside = torch.empty(left, dtype=torch.uint8, device=seam.device)
    asked = SamplingParams(
        temperature=0.9, top_k=20, top_p=0.9, seed=1, repetition_penalty=1.1, logit_bias={0: 1.0},
        bad_words_token_ids=[[0, 1]], logprobs=1, max_tokens=2, ignore_eos=True,
    )  # fmt: skip
    judged = SamplingParams(temperature=0.0, prompt_logprobs=20, max_tokens=2, ignore_eos=True)
    prompts = [[3, 4]] * (max_batch - 1) + [list(range(3, 603))]
    for result in llm.generate(prompts, [asked] * (max_batch - 1) + [judged]):
        assert result.outputs[0].finish_reason == "length"
    assert heap.num_held + budget.working_bytes + budget.graph_bytes > 0.95 * heap.total, "the card was not full"
    assert beside.nbytes == left


def test_weights_come_to_the_device_once(tmp_path: Path) -> None:
    """Parts of merged products lie side by side, and nothing but the weights was ever there."""
    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3}
    folder = models.build(tmp_path, "qwen2", **sizes, num_attention_heads=8, num_key_value_heads=2)
    heap = card(3).heap
    device = find_device("twin:3@0")
    with device_of(device).may_wait():
        loaded = loading.load(WorkerSettings(str(folder), device="twin:3"), device)
    assert loaded.weights_bytes > 30 << 20
    assert heap.most_held < loaded.weights_bytes + (64 << 10)
    # No hole is left that is larger than what small parts leave.
    assert heap.num_reserved < loaded.weights_bytes + device_of(device).slack_bytes
    for layer in loaded.module.model.layers:
        heads, mlp = layer.self_attn, layer.mlp
        for parts in ([heads.q_proj, heads.k_proj, heads.v_proj], [mlp.gate_proj, mlp.up_proj]):
            merged = merged_weight(parts)
            assert merged.data_ptr() == parts[0].weight.data_ptr()
            assert merged.shape[0] == sum(part.out_features for part in parts)


def test_graphs_of_all_sizes_leave_their_logits_in_one_place(llm: LLM) -> None:
    graphs = llm._worker._launcher.graphs
    assert graphs is not None and len(graphs._sizes) > 3
    assert graphs.replay(2, 2).data_ptr() == graphs.replay(12, 9).data_ptr()


@pytest.mark.timeout(600)
def test_triton_kernels_in_the_interpreter(seed: int, request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--seed", str(seed), "--durations=3"]
    command += ["--trust"] if request.config.getoption("--trust") else []
    command.append(str(Path(__file__).with_name("test_triton_on_twin.py")))
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=590, check=False)
    print(done.stdout[-6000:], done.stderr[-2000:])
    assert done.returncode == 0 and " passed" in done.stdout


# -- what is wrong is seen


def is_seen(llm: LLM, wanted: dict[str, Written]) -> bool:
    """Whether requests fail or say something else."""
    work = [WORK[0], WORK[1], WORK[3], WORK[8]]
    try:
        return written(llm, work) != {name: wanted[name] for name, _ in work}
    except Exception:
        return True


def test_nothing_is_seen_where_nothing_is_wrong(late: LLM, wanted: dict[str, Written]) -> None:
    assert not is_seen(late, wanted)


def test_a_forgotten_wait_is_seen(late: LLM, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sampled, "_wait", lambda self: None)
    assert is_seen(late, wanted)


def test_a_copy_from_a_buffer_in_use_is_seen(
    late: LLM, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place for all steps, and nobody waits until the last step has gone from there."""

    def next_host(self: StepBuilder) -> Any:
        return self._hosts[0]

    monkeypatch.setattr(StepBuilder, "_next_host", next_host)
    monkeypatch.setattr(StepBuilder, "_host", property(next_host))
    assert is_seen(late, wanted)


def test_a_number_baked_into_a_graph_is_seen(
    folder: Path, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Model.forward

    def baked(self: Model, ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        return forward(self, ids, torch.full_like(positions, 30), logit_rows)

    capture = DecodeGraphs.capture

    def with_baked(self: DecodeGraphs, most: int) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Model, "forward", baked)
            return capture(self, most)

    monkeypatch.setattr(DecodeGraphs, "capture", with_baked)
    assert is_seen(engine(folder, "twin@0"), wanted)


def test_a_table_that_was_not_sent_is_seen(
    folder: Path, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = TableChanges.take

    def but_one(self: TableChanges) -> tuple[Int64, Int32]:
        places, blocks = take(self)
        told = places // self._rows.max_blocks != max(self._rows.row_of.values(), default=-1)
        return places[told], blocks[told]

    llm = engine(folder, "twin@0")
    monkeypatch.setattr(TableChanges, "take", but_one)
    # Not because somebody can't go on: what is said is wrong.
    work = [WORK[0], WORK[1], WORK[3], WORK[8]]
    assert written(llm, work) != {name: wanted[name] for name, _ in work}


def test_a_buffer_that_a_graph_reads_and_nobody_holds_is_seen(
    folder: Path, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = engine(folder, "twin@0")
    builder = llm._worker._launcher.builder
    builder.device = type(builder.device)(torch.zeros_like(builder.device.memory), builder.max_tokens, builder.max_rows)
    assert is_seen(llm, wanted)


def test_a_question_in_the_middle_of_a_step_is_seen(
    late: LLM, wanted: dict[str, Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Model.forward

    def asks(self: Model, ids: torch.Tensor, positions: torch.Tensor, logit_rows: torch.Tensor) -> torch.Tensor:
        positions.max().item()
        return forward(self, ids, positions, logit_rows)

    monkeypatch.setattr(Model, "forward", asks)
    with pytest.raises(OrderFault, match="makes the host wait"):
        late.generate(models.prompts([20], seed=77), SETTINGS["greedy"])
