"""Turns what `ir` wrote into machine code of this processor, without a compiler on the user's machine.

LLVM comes with llvmlite, a plain wheel. A kernel is compiled once per process and shape, in a quarter of a second.
`Target` says what the code may use; `Kernel` is what can be called. Nothing is written to disk.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import llvmlite.binding as llvm
from llvmlite import ir

from kernels.cpu.ir import Code

Emit = Callable[[Code], None]

_lock = threading.Lock()
# Compiled code lives as long as its engine; kernels are few and stay for the life of the process.
_engines: list[llvm.ExecutionEngine] = []


@dataclass(frozen=True)
class Target:
    """What emitted code may count on, and LLVM's names for it."""

    cpu: str
    features: str
    accumulators: int  # 16-lane float32 sums that fit in registers beside what feeds them
    pair_products: bool  # products of bf16 pairs, summed in float32, in one instruction


@lru_cache(maxsize=1)
def host() -> Target:
    """This processor."""
    _initialize()
    features = llvm.get_host_cpu_features()
    wide = bool(features.get("avx512f")) and bool(features.get("avx512vl"))
    return Target(
        cpu=llvm.get_host_cpu_name(),
        features=features.flatten(),
        accumulators=24 if wide else 6,
        pair_products=wide and bool(features.get("avx512bf16")),
    )


@lru_cache(maxsize=1)
def _initialize() -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()


@dataclass(frozen=True)
class Kernel:
    """Machine code of one function that takes the address of its arguments."""

    name: str
    address: int

    def __call__(self, arguments: int) -> None:
        """Runs it on this thread, without Python's lock."""
        _PROTOTYPE(self.address)(arguments)


_PROTOTYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def compile_kernel(name: str, emit: Emit, target: Target) -> Kernel:
    """Has `emit` write the function and compiles it for `target`, which must be able to run here."""
    with _lock:
        engine = llvm.create_mcjit_compiler(*_optimised(name, emit, target))
        engine.finalize_object()
        _engines.append(engine)
        return Kernel(name, engine.get_function_address(name))


def assembly(name: str, emit: Emit, target: Target) -> str:
    """The text of the machine code, to look at registers and spills."""
    with _lock:
        module, machine = _optimised(name, emit, target)
        return str(machine.emit_assembly(module))


def _optimised(name: str, emit: Emit, target: Target) -> tuple[llvm.ModuleRef, llvm.TargetMachine]:
    _initialize()
    module = ir.Module(name)
    module.triple = llvm.get_process_triple()
    code = Code(module, name)
    emit(code)
    code.finish()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, jit=True
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    # The kernels say themselves what is a vector and what is unrolled; more passes take longer and gain nothing.
    options = llvm.create_pipeline_tuning_options(speed_level=1)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    return parsed, machine
