"""Exponentials and what is made of them, for float32 vectors of any width, as inline code without a table or a library.

Emitters of CPU kernels call these while they write a kernel. Relative errors are about one unit in the last place; no
result depends on how many lanes are computed together.
"""

from __future__ import annotations

from kernels.cpu.ir import FLOAT, I32T, Value

LOG2E = 1.4426950408889634
LN2 = 0.6931471805599453

# 2**f for f in [-0.5, 0.5], minimax in relative error (1.9e-9 exactly, 8e-8 in float32), lowest power first.
_EXP2 = (1.0, 0.6931471825, 0.2402264625, 0.0555032864, 0.00961848907, 0.00133999309, 0.000153458124)
# Adding it leaves the nearest integer in the low bits of a float32.
_ROUNDER = 12582912.0


def exp2(x: Value) -> Value:
    """2**x for x up to 127; 0 below 2**-126, -inf included."""
    code = x.code
    inside = x.maximum(-126.0)
    shifted = inside + _ROUNDER
    fraction = inside - (shifted - _ROUNDER)
    power = code.like(_EXP2[-1], x)
    for coefficient in reversed(_EXP2[:-1]):
        power = power * fraction + coefficient
    exponent = shifted.cast(x._shaped(I32T)) << 23
    result = (power.cast(x._shaped(I32T)) + exponent).cast(x._shaped(FLOAT))
    return (x < -126.0).choose(code.like(0.0, x), result)


def exp(x: Value) -> Value:
    return exp2(x * LOG2E)


def tanh(x: Value) -> Value:
    """Absolute error below 2e-7, which is what a capped score needs."""
    # exp(2x) overflows nothing once |x| is held below where tanh is 1 in float32.
    held = x.minimum(10.0).maximum(-10.0)
    return 1.0 - 2.0 / (exp2(held * (2.0 * LOG2E)) + 1.0)


def sigmoid(x: Value) -> Value:
    held = x.minimum(80.0).maximum(-80.0)
    return 1.0 / (exp2(held * -LOG2E) + 1.0)


def log(x: Value) -> Value:
    """The natural logarithm of a scalar, from the C library."""
    return x.code.call("llvm.log.f32", FLOAT, [x])
