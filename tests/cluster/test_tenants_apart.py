"""Two tenants behind TLS under load: neither finds what the other has cached, nor learns it from the time of a token;
each gets its share."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc.aio
import pytest

from cluster.gateway.settings import GatewaySettings
from cluster.serving.auth import load_tokens, make_tokens
from cluster.serving.auth_certificates import make_certificates
from cluster.serving.public_port import PortTls
from cluster.settings import SchedulerSettings
from protos.quire.v1.inference_pb2_grpc import InferenceServiceAsyncStub
from tests.cluster.front_door import Door, at_the_door, slow
from tests.cluster.test_gateway import request

LONG = 64
SHARE = 0.10
APART = 0.03


class Clients:
    """Of both tenants, over TLS."""

    def __init__(self, port: int, authority: Path, tokens: dict[str, str]) -> None:
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        self._channel = grpc.aio.secure_channel(f"localhost:{port}", credentials)
        self._stub = InferenceServiceAsyncStub(self._channel)
        self._metadata = {tenant: (("authorization", f"Bearer {token}"),) for tenant, token in tokens.items()}

    async def ask(self, tenant: str, prompt: Sequence[int], max_tokens: int = 1) -> tuple[float, int]:
        """Seconds to the first token, and the prompt's tokens that were cached."""
        call: Any = self._stub.Generate(
            request(list(prompt), seed=1, max_tokens=max_tokens, ignore_eos=True), metadata=self._metadata[tenant]
        )
        began, first_s, cached = time.perf_counter(), 0.0, 0
        async for response in call:
            if response.HasField("accepted") and response.accepted.started:
                cached = response.accepted.cached_tokens
            if response.HasField("tokens") and not first_s:
                first_s = time.perf_counter() - began
        return first_s, cached

    async def close(self) -> None:
        await self._channel.close(None)


def area(ones: Sequence[float], others: Sequence[float]) -> float:
    """How often one of `ones` is larger than one of `others`: 0.5 tells nothing."""
    ranked = sorted([(value, 1) for value in ones] + [(value, 0) for value in others])
    above = below = 0
    for _, is_one in ranked:
        if is_one:
            above += below
        else:
            below += 1
    return above / (len(ones) * len(others))


def test_the_area_is_that_of_pairs() -> None:
    assert area([1, 2, 3], [0, 0.5]) == 1.0 and area([0], [1, 2]) == 0.0 and area([2], [1, 3]) == 0.5


@pytest.mark.timeout(900)
def test_nothing_of_one_tenant_reaches_another(tmp_path: Path, seed: int, pytestconfig: pytest.Config) -> None:
    """2,000 samples with --trust; otherwise so many that a hit, or a cache that is felt, would be seen."""
    num, random = (2_000 if pytestconfig.getoption("--trust") else 24), Random(f"apart/{seed}")
    files = make_certificates(tmp_path / "tls", ["localhost"])
    tokens = make_tokens(tmp_path / "tokens.json", [("one", ["inference"]), ("two", ["inference"])])

    async def story(door: Door) -> None:
        clients = Clients(door.server.port, files.authority, tokens)
        told: dict[bool, list[float]] = {False: [], True: []}
        own = Counter[bool]()
        over = asyncio.Event()

        async def load(tenant: str) -> None:
            while not over.is_set():
                await clients.ask(tenant, [random.randrange(300, 9_000) for _ in range(20)], 5)

        loads = [asyncio.create_task(load(tenant)) for tenant in ("one", "two")]
        for _ in range(num):
            prompt = [random.randrange(300, 9_000) for _ in range(LONG)]
            is_known = random.random() < 0.5
            # The same work before in both cases; only whose prompt it was differs.
            before = prompt if is_known else [random.randrange(300, 9_000) for _ in range(LONG)]
            await clients.ask("one", before)
            first_s, cached = await clients.ask("two", prompt)
            assert cached == 0, f"{cached} tokens that only another tenant has asked were cached"
            told[is_known].append(first_s)
            own[(await clients.ask("two", prompt))[1] > 0] += 1
        over.set()
        await asyncio.gather(*loads)
        found = area(told[True], told[False])
        print(f"area {found:.3f} of {len(told[True])} and {len(told[False])} samples; own hits {own[True]} of {num}")
        assert own[True] > 0.9 * num, "a tenant finds what it has asked itself"
        bound = APART if num >= 2_000 else 0.35
        assert abs(found - 0.5) <= bound
        await clients.close()

    settings = GatewaySettings(
        port=0, tls=PortTls(files.server_certificate, files.server_key), tokens=load_tokens(tmp_path / "tokens.json")
    )
    # A prompt that is cached is felt: its tokens take 32 ms otherwise.
    shape = slow(0.002, per_token_s=0.0005, num_blocks=4096)
    caching = SchedulerSettings(prefix_caching=True)
    at_the_door(story, settings=settings, scheduler=caching, shapes=[shape], timeout_s=800)


@pytest.mark.timeout(300)
def test_each_tenant_gets_its_share(tmp_path: Path) -> None:
    """One with four times as many clients as the other, and more than can be served of both."""
    files = make_certificates(tmp_path / "tls", ["localhost"])
    tokens = make_tokens(tmp_path / "tokens.json", [("one", ["inference"]), ("two", ["inference"])])

    async def story(door: Door) -> None:
        clients, served, over = Clients(door.server.port, files.authority, tokens), Counter[str](), asyncio.Event()

        async def client(tenant: str, first: int) -> None:
            while not over.is_set():
                await clients.ask(tenant, [first, 7, 9], 10)
                served[tenant] += not over.is_set()

        tasks = [
            asyncio.create_task(client(tenant, 300 + at))
            for tenant, num in (("one", 32), ("two", 8))
            for at in range(num)
        ]
        while sum(served.values()) < 40:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        served.clear()
        while sum(served.values()) < 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        over.set()
        print(json.dumps(served))
        await asyncio.gather(*tasks)
        assert abs(served["one"] - served["two"]) <= SHARE * sum(served.values())
        await clients.close()

    settings = GatewaySettings(
        port=0, tls=PortTls(files.server_certificate, files.server_key), tokens=load_tokens(tmp_path / "tokens.json")
    )
    at_the_door(story, settings=settings, shapes=[slow(0.01, max_batch=4)], timeout_s=280)
