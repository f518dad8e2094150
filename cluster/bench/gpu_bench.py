"""What one run of the GPU benchmark works with: device, clock, backend, peers, and what it has found so far.

The sections (`gpu_kernels`, `gpu_around`, `gpu_tune`) take a Bench, build batches through it and hand their rows to its
report. It times and decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from cluster.bench.gpu_batches import SHAPES, Built, GpuWorkload, LayerHeads, build, scaled_down, worst_error
from cluster.bench.gpu_clock import Ceilings, DeviceClock, Work
from cluster.bench.report import Report, Row, target_row
from kernels.batch import Scoring
from kernels.gpu.backend import TritonBackend


@dataclass
class GpuBench:
    """One run: what it measures with and what it has found."""

    report: Report
    device: torch.device
    dtype: torch.dtype
    clock: DeviceClock
    backend: TritonBackend
    peers: list[str]
    shapes: Sequence[str]  # names of head shapes; none: all
    tiny: bool  # in the interpreter: the same code on lengths that numpy can do
    seed: int
    ceilings: Ceilings = field(init=False)
    targets: list[Row] = field(default_factory=list)
    noted: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.ceilings = self.clock.ceilings()

    def build(self, shape: LayerHeads, workload: GpuWorkload, block_size: int = 16, **options: int | bool) -> Built:
        if self.tiny:
            workload = scaled_down(workload, 16)
            shape = replace(shape, num_heads=2 * shape.group, num_kv_heads=2, dim=32, window=shape.window // 64)
        # What the batch before left is given back.
        self.clock.seam.free_bytes()
        return build(
            shape,
            workload,
            block_size=block_size,
            dtype=self.dtype,
            device=self.device,
            **options,  # type: ignore[arg-type]
        )

    def ours(self, built: Built, backend: TritonBackend | None = None, layer: int = 0) -> Work:
        """Our attention of one layer, on a plan that is built already."""
        chosen, out, shape = backend or self.backend, torch.full_like(built.q, float("nan")), built.shape
        prepare(chosen, built)
        scoring = Scoring(built.scale, shape.window, shape.softcap)
        return lambda: chosen.attention(built.q, built.caches[layer], built.batch, scoring, out=out)

    def check(self, built: Built, work: Work, block_size: int) -> None:
        """Our output on this shape is the reference's."""
        out = work()
        assert isinstance(out, torch.Tensor)
        error = worst_error(built, out)
        what = f"{built.shape.name}, {built.workload.name}, block {block_size}"
        self.report.check(what, error <= 1.0, f"{error:.2f} of the error allowed for {out.dtype}")

    def of(self, shapes: Sequence[LayerHeads]) -> list[LayerHeads]:
        return [shape for shape in shapes if not self.shapes or shape.name in self.shapes]

    def left_out(self, built: Built, reasons: dict[str, str]) -> None:
        """Notes why a peer is missing, once per reason."""
        for name, reason in reasons.items():
            if (name, reason) not in self.noted:
                self.noted.add((name, reason))
                self.report.note(f"{name} left out of {built.shape.name}, {built.workload.name} and the like: {reason}")

    def target(self, what: str, wanted: float, got: float, *, at_least: bool) -> None:
        self.targets.append(target_row(what, wanted, got, at_least=at_least))


def prepare(backend: TritonBackend, built: Built) -> None:
    shape, cache = built.shape, built.caches[0]
    backend.prepare(
        built.batch,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.dim,
        block_size=cache.block_size,
    )


def open_bench(
    report: Report, device: torch.device, *, peers: Sequence[str], shapes: Sequence[str], budget_s: float, seed: int
) -> GpuBench:
    """Measures the device's ceilings and makes ready. Where there is no GPU, kernels run in Triton's interpreter."""
    unknown = set(shapes) - {shape.name for shape in SHAPES}
    if unknown:
        names = ", ".join(shape.name for shape in SHAPES)
        raise ValueError(f"there is no head shape named {sorted(unknown)[0]!r}; there are {names}")
    torch.manual_seed(seed)
    clock = DeviceClock(device, budget_s=budget_s)
    tiny = not clock.is_real
    bench = GpuBench(
        report=report,
        device=device,
        dtype=torch.float32 if tiny else torch.bfloat16,
        clock=clock,
        backend=TritonBackend(device),
        peers=list(peers),
        shapes=shapes,
        tiny=tiny,
        seed=seed,
    )
    found = bench.ceilings
    report.table(
        "ceilings",
        [{"read GB/s": found.read / 1e9, "copy GB/s": found.copy / 1e9, "matmul TFLOP/s": found.matmul / 1e12}],
    )
    return bench
