"""vLLM's engine, stepped in this process, so that each token's time is known."""

from __future__ import annotations

import os
import time
from importlib import metadata
from typing import Any


def vllm(job: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.inputs import TokensPrompt  # type: ignore[import-not-found]

    llm = LLM(job["folder"], dtype=job["dtype"], skip_tokenizer_init=True, max_model_len=job["longest"])
    engine, calls = llm.llm_engine, iter(range(1 << 30))

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        began, call = time.perf_counter(), next(calls)
        for number, (prompt, count) in enumerate(zip(prompts, wanted, strict=True)):
            params = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False)
            engine.add_request(f"{call}-{number}", TokensPrompt(prompt_token_ids=prompt), params)
        outputs: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        while engine.has_unfinished_requests():
            for news in engine.step():
                number = int(news.request_id.split("-")[1])
                outputs[number] = list(news.outputs[0].token_ids)
                times[number] += [time.perf_counter() - began] * (len(outputs[number]) - len(times[number]))
        return outputs, times

    return run


def version(job: dict[str, Any]) -> str:
    return metadata.version("vllm")
