"""SGLang's offline engine, one stream a request."""

from __future__ import annotations

import asyncio
import time
from importlib import metadata
from typing import Any


def sglang(job: dict[str, Any]) -> Any:
    from sglang import Engine  # type: ignore[import-not-found]

    engine = Engine(
        model_path=job["folder"], dtype=job["dtype"], skip_tokenizer_init=True, context_length=job["longest"],
        device=job["device"], log_level="error", random_seed=0,
    )  # fmt: skip

    async def one(prompt: list[int], count: int, began: float) -> tuple[list[int], list[float]]:
        params = {"temperature": 0.0, "max_new_tokens": count, "ignore_eos": True}
        tokens, times = list[int](), list[float]()
        async for news in await engine.async_generate(input_ids=prompt, sampling_params=params, stream=True):
            tokens = list(news["output_ids"])
            times += [time.perf_counter() - began] * (len(tokens) - len(times))
        return tokens, times

    async def all_of(prompts: list[list[int]], wanted: list[int]) -> list[tuple[list[int], list[float]]]:
        began = time.perf_counter()
        return await asyncio.gather(*(one(*each, began) for each in zip(prompts, wanted, strict=True)))

    loop = asyncio.new_event_loop()

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        found = loop.run_until_complete(all_of(prompts, wanted))
        return [tokens for tokens, _ in found], [times for _, times in found]

    return run


def version(job: dict[str, Any]) -> str:
    return metadata.version("sglang")
