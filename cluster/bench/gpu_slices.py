"""The slices of `quire bench gpu`: what each measures, at full size on a GPU and at a tiny one in a rehearsal.

`gpu.py` runs them, each with a report that keeps its rows as they come. Attention is timed by `gpu_kernels.py` and
`gpu_around.py`, whole steps by `offline_gpu.py`, blocks on their way to the host and back here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cluster.bench import offline_gpu
from cluster.bench.gpu_command import PEERS
from cluster.bench.offline_models import SHAPES, folder_of
from cluster.bench.report import Report
from cluster.register.states import PoolLayout
from kernels.device.seam import device_of, find_device


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    device: torch.device
    is_real: bool
    batches: tuple[int, ...]
    prompt: int
    # Names of shapes: a small model, a large one, a mixture.
    small: str
    large: str
    mixture: str
    dtype: str
    # Tokens of sequences that are decoded together.
    contexts: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    swapped_blocks: int
    block_bytes: int
    head_shapes: tuple[str, ...]

    @staticmethod
    def full(device: torch.device, batches: Sequence[int]) -> Scale:
        long, short = 128 * 1024, 4 * 1024
        contexts = ((long,), (long // 4,) * 8, (short,) * 64, (long, *(short,) * 31), (long // 4, *(512,) * 127))
        return Scale(
            device, True, tuple(batches), 512, "1b", "8b", "mixture", "bfloat16", contexts,
            (512, 1024, 2048, 4096, 8192), 1024, 2 << 20, (),
        )  # fmt: skip

    @staticmethod
    def rehearsal(device: torch.device, batches: Sequence[int] | None) -> Scale:
        return Scale(
            device, False, tuple(batches or (1, 3)), 12, "tiny", "tiny", "tiny-mixture", "float32", ((40, 9, 9),),
            (24,), 6, 4096, ("llama-8b",),
        )  # fmt: skip

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of the engine."""
        chosen: dict[str, Any] = {"dtype": self.dtype, "device": str(self.device), **more}
        if not self.is_real:
            # Whole steps with kernels in the interpreter are what tests of the engine on the twin run.
            chosen |= {"kernels": "reference", "block_size": 8, "kv_blocks": 80, "token_budget": 32}
        return chosen


@dataclass(frozen=True)
class Slice:
    """One part of the benchmark."""

    what: str
    run: Callable[[Report, Scale], None]


def _attention(*sections: str, with_trace: bool = False) -> Callable[[Report, Scale], None]:
    def run(report: Report, scale: Scale) -> None:
        from cluster.bench import gpu_bench, gpu_kernels

        with device_of(scale.device).may_wait():
            bench = gpu_bench.open_bench(
                report, scale.device, peers=PEERS, shapes=scale.head_shapes, budget_s=0.3, seed=1
            )
            gpu_kernels.run(bench, sections=sections, with_trace=with_trace)

    return run


def _checkpoint(name: str) -> Callable[[Report, Scale], None]:
    """Made before anything is timed with it, because writing it takes a while."""

    def run(report: Report, scale: Scale) -> None:
        folder = folder_of(getattr(scale, name))
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        report.row("checkpoints", {"shape": getattr(scale, name), "MB": size / 1e6, "files": size > 0})

    return run


def _steps(name: str) -> Callable[[Report, Scale], None]:
    def run(report: Report, scale: Scale) -> None:
        shape, settings = getattr(scale, name), scale.settings()
        title = f"decode steps, {shape}, {scale.dtype}, {scale.device.type}"
        offline_gpu.decode_batches(report, folder_of(shape), title, list(scale.batches), scale.prompt, **settings)

    return run


def _contexts(report: Report, scale: Scale) -> None:
    offline_gpu.long_contexts(report, folder_of(scale.small), scale.contexts, **scale.settings())


def _prompts(report: Report, scale: Scale) -> None:
    offline_gpu.whole_prompts(report, folder_of(scale.large), scale.prompts, **scale.settings())


def _ranks(report: Report, scale: Scale) -> None:
    """The large model over one, two and all GPUs; what there is not is noted."""
    shape = scale.large
    sizes = [size for size in (2, 4, 8) if size <= SHAPES[shape]["num_key_value_heads"] and _has(scale.device, size)]
    if not sizes:
        report.note("tensor parallel: there is one GPU, and two are needed")
    for size in report.in_time("tensor parallel", sizes):
        settings = scale.settings(tensor_parallel_size=size)
        title = f"decode steps, {shape}, {scale.dtype}, {size} ranks"
        offline_gpu.decode_batches(
            report, folder_of(shape), title, list(scale.batches[-2:]), scale.prompt, beside=False, **settings
        )


def _has(device: torch.device, count: int) -> bool:
    try:
        find_device(f"{device.type}:{count - 1}")
    except ValueError:
        return False
    return True


def _others(report: Report, scale: Scale) -> None:
    offline_gpu.other_engines(report, folder_of(scale.large), list(scale.batches), scale.prompt, scale.dtype)


def _swapped(report: Report, scale: Scale) -> None:
    """Blocks out to pinned memory and back in, summed by the device, beside one plain copy of as many bytes."""
    from worker.transfer.device import DeviceBytes

    seam, size = device_of(scale.device), scale.block_bytes
    layout = PoolLayout("bench", size, size)
    pool = torch.randint(0, 255, (2 * scale.swapped_blocks, size), dtype=torch.uint8, device=scale.device)
    held = DeviceBytes(layout, pool)
    order = np.random.default_rng(1).permutation(2 * scale.swapped_blocks).astype(np.int32)
    blocks = np.sort(order[: scale.swapped_blocks])
    staging = seam.pinned(scale.swapped_blocks * size, torch.uint8)
    rows = staging.data_ptr() + np.arange(scale.swapped_blocks, dtype=np.int64) * size
    count, whole = len(blocks) * size, pool[: scale.swapped_blocks].view(-1)
    seam.wait()
    ways: dict[str, Callable[[], object]] = {
        "one copy out": lambda: staging.copy_(whole, non_blocking=True),
        "one copy in": lambda: whole.copy_(staging, non_blocking=True),
        "blocks out": lambda: held.copy_out(blocks, rows, None),
        "blocks in": lambda: held.copy_in(blocks, rows, None),
    }
    for name, work in ways.items():
        work()
        seam.wait()
        took = min(seam.seconds_of(work) for _ in range(5 if scale.is_real else 1))
        report.row("swap", {"what": name, "MB": count / 1e6, "GB/s": count / took / 1e9})
    sums = held.copy_out(blocks, rows, None)
    report.check("blocks that went out and in are what they were", bool((sums == held.checksums(blocks)).all()))


SLICES: dict[str, Slice] = {
    "decode": Slice("attention of decodes over head shapes, beside its peers", _attention("decode")),
    "traffic": Slice("attention of decodes of unequal lengths, to 128 K", _attention("traffic", "balance")),
    "prefill": Slice("attention of prompts and chunks, beside its peers", _attention("prefill", "mixed")),
    "around": Slice("graphs, writes, copies, plans, where time goes", _attention("graph", "around", with_trace=True)),
    "swap": Slice("blocks to pinned memory and back", _swapped),
    "make-small": Slice("the small model's checkpoint", _checkpoint("small")),
    "steps-small": Slice("decode steps of the small model beside transformers", _steps("small")),
    "contexts": Slice("decode steps at contexts to 128 K, and at skewed ones", _contexts),
    "make-large": Slice("the large model's checkpoint", _checkpoint("large")),
    "steps-large": Slice("decode steps of the large model beside transformers", _steps("large")),
    "prompts": Slice("prompts of the large model, against the dense product rate", _prompts),
    "ranks": Slice("the large model in slices over the GPUs that there are", _ranks),
    "make-mixture": Slice("the mixture's checkpoint", _checkpoint("mixture")),
    "steps-mixture": Slice("decode steps of a mixture of 128 experts, GQA 8 to 1", _steps("mixture")),
    "others": Slice("vLLM and SGLang on the large model, where they are installed", _others),
}
