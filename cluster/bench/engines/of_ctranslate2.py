"""CTranslate2: the checkpoint is converted once, beside itself; tokens are the words t0, t1, ... of a vocabulary.

It never says the end token where outputs have a least length: there its tokens part from those who pass over it.
"""

from __future__ import annotations

import time
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}


def ctranslate2(job: dict[str, Any]) -> Any:
    from ctranslate2 import Generator  # type: ignore[import-not-found]

    folder = Path(job["folder"]).parent / f"{Path(job['folder']).name}-ctranslate2"
    if not (folder / "model.bin").is_file():
        _convert(job["folder"], str(folder))
    generator = Generator(
        str(folder), device=job["device"], compute_type=TYPES[job["dtype"]], intra_threads=job["threads"]
    )

    def run(prompts: list[list[int]], wanted: list[int]) -> tuple[list[list[int]], list[list[float]]]:
        """It has one length for a batch: requests are sorted by length, and the surplus is not counted."""
        began = time.perf_counter()
        outputs: list[list[int]] = [[] for _ in prompts]
        times: list[list[float]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda number: wanted[number])
        for at in range(0, len(order), BATCH):
            batch = order[at : at + BATCH]

            def note(news: Any, batch: list[int] = batch) -> bool:
                number = batch[news.batch_id]
                if len(outputs[number]) < wanted[number]:
                    outputs[number].append(news.token_id)
                    times[number].append(time.perf_counter() - began)
                return False

            generator.generate_batch(
                [[f"t{token}" for token in prompts[number]] for number in batch],
                max_length=max(wanted[number] for number in batch),
                min_length=max(wanted[number] for number in batch),
                sampling_topk=1, include_prompt_in_result=False, callback=note,
            )  # fmt: skip
        return outputs, times

    return run


BATCH = 32


def _convert(folder: str, into: str) -> None:
    from ctranslate2.converters import TransformersConverter  # type: ignore[import-not-found]
    from transformers import AutoConfig

    words = {f"t{token}": token for token in range(AutoConfig.from_pretrained(folder).vocab_size)}

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return SimpleNamespace(get_vocab=lambda: words, bos_token="t1", eos_token="t2", unk_token="t0")

    Converter(folder).convert(into, force=True)


def version(job: dict[str, Any]) -> str:
    return metadata.version("ctranslate2")
