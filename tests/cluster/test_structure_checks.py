"""A structure that would take minutes or gigabytes to compile is refused in time, and holds up nobody else's."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cluster.errors import InvalidRequest
from cluster.gateway.models import TextModel
from cluster.gateway.structures import GatewayStructures
from cluster.structure import StructuredOutputsParams
from worker.demo import PATH

SMALL = StructuredOutputsParams(regex="a+")
NESTED = StructuredOutputsParams(
    grammar="start: A\nA: B B B B B B B B B B B B\nB: C C C C C C C C C C C C\n"
    "C: D D D D D D D D D D D D\nD: E E E E\nE: /[^a]*/"
)
LARGE = StructuredOutputsParams(regex="[^a]*" * 20_000)
COMPILE_S = 2.0


def with_structures(story: Callable[[GatewayStructures, TextModel], Awaitable[None]]) -> None:
    async def run() -> None:
        structures = GatewayStructures(COMPILE_S)
        try:
            await story(structures, TextModel.load("demo", Path(PATH)))
        finally:
            await structures.close()

    asyncio.run(asyncio.wait_for(run(), 100))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("hard", [NESTED, LARGE], ids=["150 bytes", "100,000 characters"])
def test_a_hard_one_is_refused_and_the_next_is_served(hard: StructuredOutputsParams) -> None:
    async def story(structures: GatewayStructures, model: TextModel) -> None:
        await structures.check("t", model, SMALL)
        with pytest.raises(InvalidRequest, match="to compile"):
            await structures.check("t", model, hard)
        assert structures.child.num_ended == 1
        await structures.check("t", model, StructuredOutputsParams(regex="b+"))

    with_structures(story)


@pytest.mark.timeout(120)
def test_many_hard_ones_of_a_tenant_wait_behind_what_others_ask() -> None:
    async def story(structures: GatewayStructures, model: TextModel) -> None:
        await structures.check("t", model, SMALL)
        hard = [asyncio.create_task(structures.check("hostile", model, NESTED)) for _ in range(8)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await structures.check("t", model, StructuredOutputsParams(regex="b+"))
        assert sum(task.done() for task in hard) <= 1, f"it waited for {time.monotonic() - began:.1f} s"
        for task in hard:
            task.cancel()
        await asyncio.gather(*hard, return_exceptions=True)

    with_structures(story)


def test_what_is_wrong_in_itself_is_said_and_what_was_good_is_remembered() -> None:
    async def story(structures: GatewayStructures, model: TextModel) -> None:
        with pytest.raises(InvalidRequest, match=r"structured_outputs\.regex: cannot be obeyed"):
            await structures.check("t", model, StructuredOutputsParams(regex="(a"))
        await structures.check("t", model, SMALL)
        child = structures.child._child
        assert child is not None
        child.kill()
        await child.wait()
        await structures.check("t", model, SMALL)

    with_structures(story)
