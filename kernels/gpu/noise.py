"""Values in the order of integers, and the noise of a draw, as the kernels of `sampling.py` compute them."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.noise import LARGEST as _LARGEST
from kernels.noise import ROUND_1 as _ROUND_1
from kernels.noise import ROUND_2 as _ROUND_2
from kernels.noise import ROUND_3 as _ROUND_3
from kernels.noise import SCALE as _SCALE
from kernels.noise import SPREAD as _SPREAD

LARGEST = tl.constexpr(_LARGEST)
ROUND_1 = tl.constexpr(_ROUND_1)
ROUND_2 = tl.constexpr(_ROUND_2)
ROUND_3 = tl.constexpr(_ROUND_3)
SCALE = tl.constexpr(_SCALE)
SPREAD = tl.constexpr(_SPREAD)


@triton.jit
def order_of_value(value):
    """Integers in the order of fp32 values; zero has one only."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of_order(order):
    order = order.to(tl.int32)
    return (order ^ ((order >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def exponential(token, first, second):
    """The noise of a token, as `noise.token_noise`; the logarithm is a polynomial, for those of a GPU are coarse near
    one, which is where the winners of a race are."""
    x = token.to(tl.uint32) * SPREAD + first
    x = (x ^ (x >> 17)) * ROUND_1
    x = x ^ second
    x = (x ^ (x >> 11)) * ROUND_2
    x = (x ^ (x >> 15)) * ROUND_3
    x = x ^ (x >> 14)
    uniform = tl.minimum((x.to(tl.float32) + 0.5) * SCALE, LARGEST)
    rest = 1.0 - uniform
    bits = rest.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    z = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    p = 7.0376836292e-2 * z - 1.1514610310e-1
    p = p * z + 1.1676998740e-1
    p = p * z - 1.2420140846e-1
    p = p * z + 1.4249322787e-1
    p = p * z - 1.6668057665e-1
    p = p * z + 2.0000714765e-1
    p = p * z - 2.4999993993e-1
    p = p * z + 3.3333331174e-1
    scale = exponent.to(tl.float32)
    square = z * z
    log = z * square * p - scale * 2.12194440e-4 - 0.5 * square + z + scale * 0.693359375
    # log1p(-u) = log(1 - u) * u / (1 - (1 - u)): what the difference lost is made good.
    lost = 1.0 - rest
    return tl.where(lost == 0.0, uniform, -log * uniform / tl.where(lost == 0.0, 1.0, lost))
