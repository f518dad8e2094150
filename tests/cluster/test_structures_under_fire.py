"""Answers of a structure while workers that write them, and the scheduler, get SIGKILL: the same tokens as undisturbed.

Whoever dies does so when every answer has begun and none is over, so that each is cut in its middle.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from cluster import AsyncClient, SamplingParams
from cluster.lifecycle.cluster_settings import ClusterSettings
from cluster.lifecycle.running import Running
from cluster.structure import StructuredOutputsParams
from tests.cluster.clusters import PROMPTS, children, up, wait_for_all

pytestmark = pytest.mark.trust

SETTINGS = ClusterSettings(
    workers=2, gateways=1, kv_blocks=1024, cpus_per_worker=0.5, port=0, admin_port=0, metrics_port=0, max_batch=32
)
SCHEMA = {
    "type": "object",
    "properties": {
        "tale": {"type": "string", "minLength": 300, "maxLength": 320},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "friends": {"type": "array", "items": {"type": "string", "maxLength": 12}, "minItems": 10, "maxItems": 12},
    },
    "required": ["tale", "age", "friends"],
    "additionalProperties": False,
}
EXPRESSION = "([a-z]{2,9} ){70,80}end"
CHOICE = [f"{name} said: {'so it is, and so it was, ' * 20}the end." for name in ("Mira", "Otto", "The baker")]
STRUCTURES = {
    "schema": StructuredOutputsParams(json=SCHEMA),
    "expression": StructuredOutputsParams(regex=EXPRESSION),
    "choice": StructuredOutputsParams(choice=CHOICE),
}
DRAWS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=700),
    "seeded": SamplingParams(n=2, temperature=0.9, seed=7, max_tokens=700),
}
BEGUN = 20
"""Tokens of each sequence before anybody dies."""


@dataclass
class Answer:
    """What has come so far, of each sequence."""

    kind: str
    draw: str
    prompt: str
    tokens: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    is_over: bool = False

    async def read(self, client: AsyncClient) -> None:
        params = replace(DRAWS[self.draw], structured_outputs=STRUCTURES[self.kind])
        self.tokens, self.texts = [[] for _ in range(params.n)], [""] * params.n
        async for news in client.stream(self.prompt, params, model="demo", timeout_s=150.0, resume_grace_s=60.0):
            self.tokens[news.index] += news.token_ids
            self.texts[news.index] += news.text
        self.is_over = True

    @property
    def is_whole(self) -> bool:
        """Each sequence is of its structure."""
        if self.kind == "choice":
            return all(text in CHOICE for text in self.texts)
        if self.kind == "expression":
            return all(re.fullmatch(EXPRESSION, text) for text in self.texts)
        found = [json.loads(text) for text in self.texts]
        return all(300 <= len(one["tale"]) <= 320 and 10 <= len(one["friends"]) <= 12 for one in found)


def answers() -> list[Answer]:
    return [Answer(kind, draw, prompt) for kind in STRUCTURES for draw in DRAWS for prompt in PROMPTS[:2]]


async def read_all(running: Running, victims: Sequence[int] = ()) -> list[Answer]:
    """All at once, each on a stream of its own."""
    found = answers()
    async with AsyncClient(running.gateways) as client, asyncio.TaskGroup() as group:
        for one in found:
            group.create_task(one.read(client))
        async with asyncio.timeout(60.0):
            while any(len(tokens) < BEGUN for one in found for tokens in one.tokens or [[]]):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        over = [one for one in found if one.is_over]
        begun = {one.kind: [len(tokens) for tokens in one.tokens] for one in found}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
    ends = {one.kind: [len(tokens) for tokens in one.tokens] for one in found}
    print(f"tokens when {len(victims)} died: {begun}, at the end: {ends}")
    assert not victims or not over, f"{over} were over when somebody died"
    return found


def processes(running: Running, actor: str) -> list[int]:
    return [pid for pid, words in children(running.ray_pids).items() if f"ray::{actor}" in words]


@pytest.mark.timeout(600)
def test_answers_of_a_structure_survive_workers_and_the_scheduler(tmp_path: Path) -> None:
    with up(SETTINGS, tmp_path) as running:
        wait_for_all(running, 2, 1)
        expected = asyncio.run(read_all(running))
        assert all(one.is_whole for one in expected)
        for who, actor, num in (
            ("a worker", "WorkerActor", 1),
            ("both workers", "WorkerActor", 2),
            ("the scheduler", "SchedulerActor", 1),
        ):
            wait_for_all(running, 2, 1)
            victims = processes(running, actor)[:num]
            assert len(victims) == num
            found = asyncio.run(read_all(running, victims))
            assert found == expected, f"{who} killed"
