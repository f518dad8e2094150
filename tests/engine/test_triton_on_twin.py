"""The engine on the twin with the real Triton kernels, in the interpreter: a process of its own that
`test_engine_on_twin.py` starts, because Triton decides at import whether kernels are interpreted."""

import os
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in Triton's interpreter through test_engine_on_twin.py", allow_module_level=True)

from kernels.device.twin.device import ORDER
from kernels.gpu import launch
from tests.engine import models
from tests.engine.test_engine_on_twin import SETTINGS, WORK, Written, engine, written

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
    start = launch._launch

    def noted(kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], *args: Any) -> None:
        kinds.add((kernel.fn.__name__, *launch.key_of(kernel, constants, args)[1:]))
        start(kernel, grid, constants, *args)

    monkeypatch.setattr(launch, "_launch", noted)
    llm = engine(folder, "twin@0", kernels="triton", max_batch=6)
    assert llm._worker._launcher.graphs is not None and llm._worker.parts.model.num_replaced
    compiled = set(kinds)
    for number in range(NUM_SCHEDULES):
        schedule = seed * NUM_SCHEDULES + number
        ORDER.schedule(schedule)
        work = [WORK[(2 * number + place) % len(SETTINGS)] for place in range(2)]
        found = written(llm, work)
        wrong = [name for name in found if found[name] != wanted[name]]
        assert not wrong, f"schedule {schedule}: {wrong} differ"
    late = {(kind[0], *kind[1:]) for kind in kinds - compiled}
    assert not late, f"compiled while serving: {sorted(map(str, late))}"


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
@pytest.mark.trust
def test_other_decoders(kind: str, tmp_path: Path) -> None:
    folder = models.build(tmp_path, kind, num_hidden_layers=2)
    work = [WORK[0], WORK[4], WORK[13]]
    want = written(engine(folder, "cpu"), work)
    llm = engine(folder, "twin@0", kernels="triton", max_batch=6)
    for schedule in range(4):
        ORDER.schedule(schedule)
        assert written(llm, work) == want
