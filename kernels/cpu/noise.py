"""Arithmetic of a draw for the CPU kernels: ordered values, weights, the race. Same definitions as `noise.py`.

All of it is plain 32-bit arithmetic without branches, calls or library functions, so that the compiler turns the loops
over a vocabulary into vector code; and without contraction or reordering, so that every machine gets the same bits.
"""

from __future__ import annotations

import math

import numpy as np

from kernels import noise
from kernels.cpu.inner import inner

I32 = np.int32
U32 = np.uint32
F32 = np.float32

_SPREAD = U32(noise.SPREAD)
_ROUND_1 = U32(noise.ROUND_1)
_ROUND_2 = U32(noise.ROUND_2)
_ROUND_3 = U32(noise.ROUND_3)
_SCALE = F32(noise.SCALE)
_LARGEST = F32(noise.LARGEST)
_MAGNITUDE = I32(0x7FFFFFFF)

# ln 2 in two parts, the first exact in few bits.
_LN2_HIGH = F32(0.693359375)
_LN2_LOW = F32(-2.12194440e-4)
_LOG2_E = F32(1.0 / math.log(2.0))
_ROOT_HALF = I32(0x3F3504F3)

# Minimax polynomials of the Cephes library, exp on +-ln(2)/2 and log on sqrt(1/2) to sqrt(2).
_E5, _E4, _E3 = F32(1.9875691500e-4), F32(1.3981999507e-3), F32(8.3334519073e-3)
_E2, _E1, _E0 = F32(4.1665795894e-2), F32(1.6666665459e-1), F32(5.0000001201e-1)
_L8, _L7, _L6 = F32(7.0376836292e-2), F32(-1.1514610310e-1), F32(1.1676998740e-1)
_L5, _L4, _L3 = F32(-1.2420140846e-1), F32(1.4249322787e-1), F32(-1.6668057665e-1)
_L2, _L1, _L0 = F32(2.0000714765e-1), F32(-2.4999993993e-1), F32(3.3333331174e-1)


@inner
def order_of_bits(bits):
    """The bits of an fp32 value as an integer in the order of values; its own inverse."""
    return I32(bits ^ ((bits >> I32(31)) & _MAGNITUDE))


@inner
def value_of_order(order):
    return I32(order_of_bits(order)).view(F32)


@inner
def exp_of_negative(x):
    """exp(x) for x <= 0, 1e-7 of the true value; below -87 it stays at exp(-87), which no sum can feel."""
    x = max(x, F32(-87.0))
    n = np.floor(x * _LOG2_E + F32(0.5))
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_E5 * r + _E4) * r + _E3) * r + _E2) * r + _E1) * r + _E0
    p = p * r * r + r + F32(1.0)
    return p * I32((I32(n) + I32(127)) << I32(23)).view(F32)


@inner
def hash_of_token(token, first, second):
    """32 random bits from a token id and the halves of a key."""
    x = U32(U32(token) * _SPREAD + first)
    x = U32(U32(x ^ (x >> U32(17))) * _ROUND_1)
    x = U32(x ^ second)
    x = U32(U32(x ^ (x >> U32(11))) * _ROUND_2)
    x = U32(U32(x ^ (x >> U32(15))) * _ROUND_3)
    return U32(x ^ (x >> U32(14)))


@inner
def race(token, weight, first, second):
    """Exponential noise of this token over its weight; the smallest wins."""
    uniform = min((F32(hash_of_token(token, first, second)) + F32(0.5)) * _SCALE, _LARGEST)
    rest = F32(1.0) - uniform
    bits = F32(rest).view(I32)
    exponent = I32(I32(bits - _ROOT_HALF) >> I32(23))
    z = I32(bits - I32(exponent << I32(23))).view(F32) - F32(1.0)
    p = (((((((_L8 * z + _L7) * z + _L6) * z + _L5) * z + _L4) * z + _L3) * z + _L2) * z + _L1) * z + _L0
    scale = F32(exponent)
    square = z * z
    log = z * square * p + scale * _LN2_LOW - F32(0.5) * square + z + scale * _LN2_HIGH
    # log1p(-u) = log(1 - u) * u / (1 - (1 - u)): what the difference lost is made good; and one division for all.
    lost = F32(1.0) - rest
    small = lost == F32(0.0)
    above = uniform if small else -log * uniform
    below = weight if small else lost * weight
    return above / below
