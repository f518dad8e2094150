"""The engine on the twin with the real Triton kernels, in the interpreter: a process of its own that
`test_engine_on_twin.py` starts, because Triton decides at import whether kernels are interpreted."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter through test_engine_on_twin.py", allow_module_level=True)

from kernels.device.twin.device import ORDER
from kernels.gpu import issuing
from tests.engine import models
from tests.engine.test_engine_on_twin import SETTINGS, WORK, Written, engine, written
from worker.sampling.sampler import Sampled

NUM_SCHEDULES = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("twin"), "llama", num_hidden_layers=1)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, Written]:
    return written(engine(folder, "cpu"), WORK)


@pytest.mark.timeout(500)
def test_tokens_are_those_of_the_cpu_and_nothing_is_compiled_while_serving(
    folder: Path, wanted: dict[str, Written], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: set[tuple[Any, ...]] = set()
    start = issuing._launch

    def noted(kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], *args: Any) -> None:
        kinds.add((kernel.fn.__name__, *issuing.key_of(kernel, constants, args)[1:]))
        start(kernel, grid, constants, *args)

    monkeypatch.setattr(issuing, "_launch", noted)
    llm = engine(folder, "twin@0", kernels="triton", max_batch=6)
    graphs = llm._worker._launcher.graphs
    assert graphs is not None and llm._worker.parts.model.num_replaced
    compiled, drawn = set(kinds), [0]
    draw = graphs.drawn

    def counted(size: int, rows: int) -> Sampled:
        drawn[0] += 1
        return draw(size, rows)

    monkeypatch.setattr(graphs, "drawn", counted)
    for number in range(NUM_SCHEDULES):
        schedule = seed * NUM_SCHEDULES + number
        ORDER.schedule(schedule)
        work = [WORK[(2 * number + place) % len(SETTINGS)] for place in range(2)]
        found = written(llm, work)
        wrong = [name for name in found if found[name] != wanted[name]]
        assert not wrong, f"schedule {schedule}: {wrong} differ"
    assert drawn[0] > NUM_SCHEDULES, "graphs drew next to nothing"
    late = {(kind[0], *kind[1:]) for kind in kinds - compiled}
    assert not late, f"compiled while serving: {sorted(map(str, late))}"


# What each has that goes another way: modules of one layer, and the last norm.
REPLACED = {
    # Norms of layers, attention, MLP and the layer whose sum is behind a norm; norms of heads.
    "qwen3": {"Qwen3RMSNorm": 5, "Qwen3Attention": 1, "Qwen3MLP": 1, "Qwen3DecoderLayer": 1},
    # Norms behind products, of one and more, before they round; a cap on scores.
    "gemma2": {"Gemma2RMSNorm": 5, "Gemma2Attention": 1, "Gemma2MLP": 1},
    "phi3": {"Phi3RMSNorm": 3, "Phi3Attention": 1, "Phi3MLP": 1, "Phi3DecoderLayer": 1},
    "mixtral": {"MixtralRMSNorm": 3, "MixtralAttention": 1, "MixtralDecoderLayer": 1},
    # Sinks, and experts with biases whose gate is their own.
    "gpt_oss": {"GptOssRMSNorm": 3, "GptOssAttention": 1, "GptOssDecoderLayer": 1},
}


@pytest.mark.parametrize("kind", REPLACED)
@pytest.mark.trust
@pytest.mark.timeout(500)
def test_other_decoders(kind: str, tmp_path: Path) -> None:
    """Their modules are recognised by what they say, their experts run inside the graph, and tokens are the CPU's."""
    layers = {"layer_types": ["sliding_attention"]} if kind in ("gemma2", "gpt_oss") else {}
    folder = models.build(tmp_path, kind, num_hidden_layers=1, **layers)
    work = [WORK[0], WORK[4], WORK[13]]
    want = written(engine(folder, "cpu"), work)
    llm = engine(folder, "twin@0", kernels="triton", max_batch=4)
    replaced = llm._worker.parts.model._replaced
    assert replaced is not None and llm._worker._launcher.graphs is not None
    assert Counter(type(module).__name__ for module in replaced._forwards) == REPLACED[kind]
    assert len(replaced._experts) == (kind in ("mixtral", "gpt_oss"))
    for schedule in range(4):
        ORDER.schedule(schedule)
        assert written(llm, work) == want


@pytest.mark.trust
def test_two_ranks(tmp_path: Path) -> None:
    """Merged products, norms and rotation of each rank's slices, in graphs."""
    folder = models.build(tmp_path, "qwen3", num_hidden_layers=2)
    work = [WORK[0], WORK[4], WORK[13]]
    want = written(engine(folder, "cpu"), work)
    llm = engine(folder, "twin@0", kernels="triton", max_batch=6, tensor_parallel_size=2)
    try:
        assert llm._worker._launcher.graphs is not None and llm._worker.parts.model.num_replaced
        assert written(llm, work) == want
    finally:
        llm.close()
