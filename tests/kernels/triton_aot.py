"""Compiles Triton kernels for targets that are not here, and reads what they use of a multiprocessor.

For tests that hold registers, spills and shared memory of the default choices on a machine without a GPU. Nothing runs.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "cdna3": GPUTarget("hip", "gfx942", 64),
}
# Shared memory that one program may take; the smallest chip that uses the choices counts.
MAX_SHARED_BYTES = {"sm80": 99 * 1024, "sm90": 227 * 1024, "sm100": 227 * 1024, "cdna3": 64 * 1024}
# Of one multiprocessor, where several programs are meant to be resident at once (A100, H100 and H200, B200, MI300).
SM_SHARED_BYTES = {"sm80": 164 * 1024, "sm90": 228 * 1024, "sm100": 228 * 1024, "cdna3": 64 * 1024}
SM_REGISTERS = 64 * 1024
TYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Compiled:
    """A kernel for one target and what it takes."""

    asm: dict[str, Any]
    registers: int
    stack_bytes: int  # where NVIDIA's compiler puts what it spills; AMD: spilled vector registers
    shared_bytes: int

    @property
    def num_instructions(self) -> int:
        """Of the kernel's text, PTX's or AMD's: a loop's count once."""
        lines = [line.strip() for line in self.asm.get("ptx", self.asm.get("amdgcn", "")).splitlines()]
        if "ptx" in self.asm:
            return sum(line.endswith(";") and not line.startswith(".") for line in lines)
        return sum(line.startswith(("s_", "v_", "ds_", "buffer_", "global_", "flat_")) for line in lines)

    def __str__(self) -> str:
        used = f"{self.registers:3d} registers, {self.stack_bytes} spilled, {self.shared_bytes / 1024:5.1f} KB shared"
        return f"{used}, {self.num_instructions:5,} instructions"


def compile_kernel(
    kernel: Any, types: dict[str, str], constants: dict[str, object], family: str, *, warps: int, stages: int = 1
) -> Compiled:
    """`types` of the pointers and floats; other arguments are int32. Pointers and strides are multiples of 16."""
    signature: dict[str, str] = {}
    hints: dict[tuple[int, ...], list[list[object]]] = {}
    for index, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            continue
        signature[parameter.name] = types.get(parameter.name, "*i32" if parameter.name.endswith("_ptr") else "i32")
        if signature[parameter.name].startswith("*") or not (
            parameter.do_not_specialize or signature[parameter.name] == "fp32"
        ):
            hints[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    compiled = triton.compile(source, target=TARGETS[family], options={"num_warps": warps, "num_stages": stages})
    registers, stack_bytes = _amd_usage(compiled) if family == "cdna3" else _nvidia_usage(compiled)
    return Compiled(dict(compiled.asm), registers, stack_bytes, int(compiled.metadata.shared))


def _nvidia_usage(compiled: CompiledKernel) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        shown = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", shown)
    assert found is not None, f"cuobjdump printed no resource usage: {shown}"
    return int(found[1]), int(found[2]) + int(found[3])


def _amd_usage(compiled: CompiledKernel) -> tuple[int, int]:
    text = compiled.asm["amdgcn"]
    counts = {name: re.search(rf"\.{name}:\s+(\d+)", text) for name in ("vgpr_count", "vgpr_spill_count")}
    assert all(counts.values()), "the AMD assembly names no register counts"
    return int(counts["vgpr_count"][1]), int(counts["vgpr_spill_count"][1])  # type: ignore[index]
