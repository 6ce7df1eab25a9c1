"""Scalar loads, atomics and calls by address for Numba's code, which sees memory as plain integers."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from llvmlite import binding, ir

from tersor.backends.numba.emitter import F32, I32, I64, Emitter, Value, declared, kernel
from tersor.backends.numba.features import Level

HAS_FUTEX = sys.platform == "linux" and os.uname().machine == "x86_64"  # whose system call is known below

SYSCALL = "tersor_syscall"
_FUTEX = 202  # the system call's number on x86-64 Linux


def provide_syscall() -> None:
    """Let compiled code find SYSCALL; to be called before it is compiled or linked."""
    # Without a futex there are no helpers, and nothing calls it.
    address = ctypes.cast(ctypes.CDLL(None).syscall, ctypes.c_void_p).value if HAS_FUTEX else 0
    binding.add_symbol(SYSCALL, address)


def make_load(level: Level) -> Any:
    """load(address) -> the 64-bit integer there."""

    @kernel(level, 1, "int64")
    def load(e: Emitter, address: Value) -> Value:
        return e.load(address, I64)

    return load


def make_store(level: Level) -> Any:
    """store(address, value): a 64-bit integer."""

    @kernel(level, 2)
    def store(e: Emitter, address: Value, value: Value) -> None:
        e.store(address, value)

    return store


def make_as_float(level: Level) -> Any:
    """as_float(bits) -> the float32 with these (low) bits."""

    @kernel(level, 1, "float32")
    def as_float(e: Emitter, bits: Value) -> Value:
        return e.b.bitcast(e.b.trunc(bits, I32), F32)

    return as_float


def make_call(level: Level, arguments: int = 4) -> Any:
    """call(function, a, b, ...): call the native function at an address with `arguments` 64-bit integers."""

    @kernel(level, 1 + arguments)
    def call(e: Emitter, function: Value, *values: Value) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
        e.b.call(e.b.inttoptr(function, kind.as_pointer()), values)

    return call


def _cell(e: Emitter, address: Value) -> Value:
    return e.b.inttoptr(address, I64.as_pointer())


def make_atomic_load(level: Level) -> Any:
    """atomic_load(address) -> the 64-bit integer there, sequentially consistent."""

    @kernel(level, 1, "int64")
    def atomic_load(e: Emitter, address: Value) -> Value:
        return e.b.load_atomic(_cell(e, address), "seq_cst", 8)

    return atomic_load


def make_atomic_add(level: Level) -> Any:
    """atomic_add(address, value) -> what was there before."""

    @kernel(level, 2, "int64")
    def atomic_add(e: Emitter, address: Value, value: Value) -> Value:
        return e.b.atomic_rmw("add", _cell(e, address), value, "seq_cst")

    return atomic_add


def make_atomic_set(level: Level) -> Any:
    """atomic_set(address, value) -> what was there before."""

    @kernel(level, 2, "int64")
    def atomic_set(e: Emitter, address: Value, value: Value) -> Value:
        return e.b.atomic_rmw("xchg", _cell(e, address), value, "seq_cst")

    return atomic_set


def make_compare_and_set(level: Level) -> Any:
    """compare_and_set(address, old, new) -> 1 if `old` was there and `new` now is, else 0."""

    @kernel(level, 3, "int64")
    def compare_and_set(e: Emitter, address: Value, old: Value, new: Value) -> Value:
        pair = e.b.cmpxchg(_cell(e, address), old, new, "seq_cst", "seq_cst")
        return e.b.zext(e.b.extract_value(pair, 1), I64)

    return compare_and_set


def make_pause(level: Level) -> Any:
    """pause(): a hint that this is a waiting loop."""

    @kernel(level, 0)
    def pause(e: Emitter) -> None:
        if level.dot == "generic":
            e.b.fence("seq_cst")
            return
        kind = ir.FunctionType(ir.VoidType(), [])
        e.b.call(declared(e.b.module, kind, "llvm.x86.sse2.pause"), [])

    return pause


def make_futex(level: Level) -> Any:
    """futex(address, operation, value): Linux's wait and wake on the low 32 bits at `address`."""

    @kernel(level, 3, "int64")
    def futex(e: Emitter, address: Value, operation: Value, value: Value) -> Value:
        kind = ir.FunctionType(I64, [I64] * 7)
        call = declared(e.b.module, kind, SYSCALL)
        zero = I64(0)
        return e.b.call(call, [I64(_FUTEX), address, operation, value, zero, zero, zero])

    return futex
