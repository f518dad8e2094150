"""The GPU's draw compiles for GPUs that are not here, and fits without spilling."""

import pytest

from kernels.gpu.sampling import BLOCK, WARPS, draw_kernel
from tests.kernels.triton_aot import SM_REGISTERS, TARGETS, compile_kernel


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", list(TARGETS))
def test_the_draw_fits(family: str) -> None:
    types = {"logits_ptr": "*bf16", "ids_ptr": "*i64", "broken_ptr": "*i8"}
    compiled = compile_kernel(draw_kernel, types, {"BLOCK": BLOCK}, family, warps=WARPS)
    print(family, compiled)
    assert compiled.stack_bytes == 0
    threads = WARPS * TARGETS[family].warp_size
    registers = SM_REGISTERS * (2 if family == "cdna3" else 1)
    assert compiled.registers * threads * 2 <= registers, "two programs should be resident on a multiprocessor"
