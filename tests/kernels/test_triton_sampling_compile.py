"""The kernels of the GPU's draw compile for GPUs that are not here, and fit without spilling."""

import pytest

from kernels.gpu.race import finish_kernel, race_kernel, top_kernel, weigh_kernel
from kernels.gpu.sampling import FINISH_SPAN, SPAN, WARPS, WEIGH_SPAN, WEIGH_WARPS
from tests.kernels.triton_aot import SM_REGISTERS, TARGETS, compile_kernel

FLOATS = ("tops_ptr", "lows_ptr", "masses_ptr", "times_ptr", "values_ptr")
TYPES = {"logits_ptr": "*bf16", "ids_ptr": "*i64", "broken_ptr": "*i1"} | dict.fromkeys(FLOATS, "*fp32")
SPANS = {"SPAN": SPAN, "WEIGH_SPAN": WEIGH_SPAN}
JOBS = {
    "top": (top_kernel, {"SPAN": SPAN}, WARPS),
    "weigh": (weigh_kernel, SPANS | {"SECOND": False}, WEIGH_WARPS),
    "weigh again": (weigh_kernel, SPANS | {"SECOND": True}, WEIGH_WARPS),
    "race": (race_kernel, {"SPAN": SPAN}, WARPS),
    "finish": (finish_kernel, {"SPAN": SPAN, "WEIGH_SPAN": FINISH_SPAN}, WARPS),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("family", list(TARGETS))
def test_the_draw_fits(family: str) -> None:
    for name, (kernel, constants, warps) in JOBS.items():
        compiled = compile_kernel(kernel, TYPES, constants, family, warps=warps)
        print(f"{family:6} {name:12}: {compiled}")
        assert compiled.stack_bytes == 0
        threads = warps * TARGETS[family].warp_size
        registers = SM_REGISTERS * (2 if family == "cdna3" else 1)
        # Of the last one there is a program per row, of the others as many as there is room for.
        resident = 1 if name == "finish" else 2
        assert compiled.registers * threads * resident <= registers, "too few can be resident on a multiprocessor"
