"""OpenVINO GenAI's continuous batching, stepped here. The checkpoint is exported once, which needs `optimum-intel`."""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from typing import Any

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
MOST_AT_ONCE = 256


def openvino(job: dict[str, Any]) -> Any:
    import numpy as np
    from openvino import Tensor  # type: ignore[import-not-found]
    from openvino_genai import (  # type: ignore[import-not-found]
        ContinuousBatchingPipeline,
        GenerationConfig,
        SchedulerConfig,
    )

    folder = Path(job["folder"])
    exported = folder.with_name(f"{folder.name}-openvino")
    if not (exported / "openvino_model.xml").is_file():
        _export(folder, exported)
    scheduler = SchedulerConfig()
    # Its blocks are at least as large as those that are counted here: a block more for each request suffices.
    scheduler.num_kv_blocks = job["blocks"] + len(job["prompts"])
    scheduler.max_num_seqs, scheduler.enable_prefix_caching = MOST_AT_ONCE, True
    precision = PRECISIONS[job["dtype"]]
    settings = {
        "INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision, "INFERENCE_NUM_THREADS": job["threads"],
    }  # fmt: skip
    device = "GPU" if job["device"] == "cuda" else "CPU"
    pipeline = ContinuousBatchingPipeline(str(exported), scheduler, device, settings)
    numbers = iter(range(1 << 30))

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        began, handles = time.perf_counter(), []
        for prompt, count in zip(prompts, wanted, strict=True):
            config = GenerationConfig()
            config.max_new_tokens, config.ignore_eos, config.do_sample = count, True, False
            handles.append(pipeline.add_request(next(numbers), Tensor(np.array([prompt], dtype=np.int64)), config))
        outputs: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        while pipeline.has_non_finished_requests():
            pipeline.step()
            for handle, ids, stamps in zip(handles, outputs, times, strict=True):
                while handle.can_read():
                    ids += handle.read()[0].generated_ids
                    stamps += [time.perf_counter() - began] * (len(ids) - len(stamps))
        return outputs, times

    return run


def _export(folder: Path, into: Path) -> None:
    from optimum.intel import OVModelForCausalLM  # type: ignore[import-not-found]

    model = OVModelForCausalLM.from_pretrained(str(folder), export=True, compile=False, load_in_8bit=False)
    model.save_pretrained(str(into))


def version(job: dict[str, Any]) -> str:
    return metadata.version("openvino-genai")
