"""transformers: `generate` over padded batches, and its continuous batching; `quire bench offline` uses them too."""

from __future__ import annotations

import queue
import time
from importlib import metadata
from typing import Any

STATIC_BATCH = 32
TIMEOUT_S = 900
# Tokens of one block of its continuous batching.
PAGE = 256

Found = tuple[list[list[int]], list[list[float]]]


def static(job: dict[str, Any]) -> Any:
    model = load(job["folder"], job["dtype"], job["threads"], job["device"])
    return lambda prompts, wanted: generate(model, prompts, wanted)


def continuous(job: dict[str, Any]) -> Any:
    model = load(job["folder"], job["dtype"], job["threads"], job["device"])
    return lambda prompts, wanted: batch_continuously(model, prompts, wanted)


def version(job: dict[str, Any]) -> str:
    return metadata.version("transformers")


def load(folder: str, dtype: str, threads: int | None = None, device: str = "cpu") -> Any:
    """The model with the attention that it is fastest with."""
    import torch
    from transformers import AutoModelForCausalLM, logging

    if threads is not None:
        torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return loaded.to(device).eval()


def generate(model: Any, prompts: list[list[int]], wanted: list[int], size: int = STATIC_BATCH) -> Found:
    """Each batch runs until its longest output is done; the surplus is not counted."""
    import torch

    outputs, times = list[list[int]](), list[list[float]]()
    began = time.perf_counter()
    with torch.inference_mode():
        for at in range(0, len(prompts), size):
            batch, counts = prompts[at : at + size], wanted[at : at + size]
            steps: list[float] = []
            written = _generate(model, batch, max(counts), steps, began)
            for row, count in zip(written, counts, strict=True):
                outputs.append(row[:count])
                times.append(steps[:count])
    return outputs, times


def _generate(model: Any, batch: list[list[int]], count: int, steps: list[float], began: float) -> list[list[int]]:
    import torch

    width = max(map(len, batch))
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(batch):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1

    def stamp(input_ids: Any, scores: Any, **_: Any) -> Any:
        # Waits for the device, as whoever streams tokens does.
        input_ids[0, -1].item()
        steps.append(time.perf_counter() - began)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=[stamp],
    )
    return out[:, width:].tolist()  # type: ignore[no-any-return]


def batch_continuously(model: Any, prompts: list[list[int]], wanted: list[int]) -> Found:
    """Its continuous batching, with each request's own length. Its thread builds the cache before times count."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=16)
    requests = list(zip(prompts, wanted, strict=True))
    # Without a bound it takes half of the memory, and its masks grow with it: it gets room for all requests.
    pages = sum(-(-(len(prompt) + count) // PAGE) for prompt, count in requests) + 1
    sizes = ContinuousBatchingConfig(num_blocks=pages, max_batch_tokens=512, allow_block_sharing=True)
    manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=sizes)
    manager.start()
    try:
        _collect(manager, [manager.add_request([1], max_new_tokens=1)])
        began = time.perf_counter()
        names = [
            manager.add_request(prompt, max_new_tokens=count, record_timestamps=True) for prompt, count in requests
        ]
        done = _collect(manager, names)
    finally:
        manager.stop(block=True, timeout=30)
    times = [[at - began for at in done[name].timestamps or []] for name in names]
    return [list(done[name].generated_tokens) for name in names], times


def _collect(manager: Any, names: list[str]) -> dict[str, Any]:
    """The finished requests of these names."""
    began = time.perf_counter()
    done: dict[str, Any] = {}
    while len(done) < len(names):
        assert time.perf_counter() - began < TIMEOUT_S, "continuous batching did not end in time"
        try:
            result = manager.get_result(timeout=1)
        except queue.Empty:
            continue
        if result is not None and result.is_finished():
            done[result.request_id] = result
    return done
