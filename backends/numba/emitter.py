"""A thin vector emitter over an LLVM IR builder, and the decorator that makes an emitting function callable from Numba.

A kernel is a Python function `(emitter, *addresses_and_counts)`: it runs once, at compile time, and what it emits
becomes the body of a Numba intrinsic taking 64-bit integers. Addresses are plain integers (bytes). Vectors have
`level.lanes` lanes of 32 bits.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from llvmlite import ir

from tersor.backends.numba.features import Level

Value: TypeAlias = Any  # llvmlite.ir.Value; llvmlite is not annotated
Kind = Literal["void", "int64", "float32"]
"""A type of Numba's."""

I8, I16, I32, I64 = (ir.IntType(width) for width in (8, 16, 32, 64))
F32 = ir.FloatType()

_VPDPBUSD = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_VPDPWSSD = {16: "llvm.x86.avx512.vpdpwssd.512", 8: "llvm.x86.avx512.vpdpwssd.256"}
_PMADDWD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}
_PMADDUBSW = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}


class Emitter:
    """Typed vector operations, addressing and counted loops for one CPU level."""

    def __init__(self, builder: ir.IRBuilder, level: Level) -> None:
        self.b = builder
        self.level = level
        n = level.lanes
        self.floats = ir.VectorType(F32, n)
        self.ints = ir.VectorType(I32, n)
        self.halves = ir.VectorType(I16, 2 * n)
        self.bytes = ir.VectorType(I8, 4 * n)
        self.narrow = ir.VectorType(I8, n)

    # --- addresses -----------------------------------------------------------------------------------------------
    def at(self, base: Value, *offsets: Value | int) -> Value:
        """base + sum of byte offsets."""
        for offset in offsets:
            if isinstance(offset, int):
                if offset == 0:
                    continue
                offset = I64(offset)
            base = self.b.add(base, offset)
        return base

    def times(self, value: Value, factor: Value | int) -> Value:
        """value * factor, 64 bit."""
        return self.b.mul(value, I64(factor) if isinstance(factor, int) else factor)

    def quotient(self, value: Value, divisor: Value) -> Value:
        """value / divisor rounded towards 0, below 2^24: a division of floats, which nothing waits for."""
        b = self.b
        floats = (b.sitofp(part, F32) for part in (value, divisor))
        return b.fptosi(b.fdiv(*floats), I64)

    def opaque(self, address: Value) -> Value:
        """The same address, unrelated to others in LLVM's eyes.

        Left to itself LLVM derives the rows of a tile from each other inside the inner loop, and that arithmetic
        competes with the dot products for their ports (a third of the speed).
        """
        identity = ir.InlineAsm(ir.FunctionType(I64, [I64]), "", "=r,0")
        return self.b.call(identity, [address])

    def settled(self, vector: Value) -> Value:
        """The same vector, as one that LLVM cannot take apart: left to itself it adds in another order, for which there
        are too few registers.
        """
        kind = ir.FunctionType(vector.type, [vector.type])
        return self.b.call(ir.InlineAsm(kind, "", "=v,0" if self.level.lanes == 16 else "=x,0"), [vector])

    def load(self, address: Value, kind: ir.Type) -> Value:
        """Unaligned load."""
        loaded = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        loaded.align = 1
        return loaded

    def store(self, address: Value, value: Value) -> None:
        """Unaligned store."""
        stored = self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()))
        stored.align = 1

    def prefetch(self, address: Value, nearest: bool = False) -> None:
        """Ask for the cache line at an address, which need not exist, in the second-level cache, or the first."""
        line = self.b.inttoptr(address, I8.as_pointer())
        reading, near, data = I32(0), I32(3 if nearest else 2), I32(1)
        self.call("llvm.prefetch.p0", ir.VoidType(), line, reading, near, data)

    def load_floats(self, address: Value) -> Value:
        return self.load(address, self.floats)

    def load_ints(self, address: Value) -> Value:
        return self.load(address, self.ints)

    def broadcast_float(self, address: Value) -> Value:
        """One float in every lane."""
        return self.splat(self.load(address, F32))

    def broadcast_int(self, address: Value) -> Value:
        """The four bytes at `address` in every lane."""
        return self.splat(self.load(address, I32))

    def transpose(self, vectors: Sequence[Value]) -> list[Value]:
        """The columns of a square of `lanes` vectors of floats: pairs swap halves, then quarters, down to lanes."""
        n = self.level.lanes
        vectors = list(vectors)
        half = n // 2
        while half:
            low = ir.Constant(self.ints, [i if not i & half else n + i - half for i in range(n)])
            high = ir.Constant(self.ints, [i + half if not i & half else n + i for i in range(n)])
            for i in range(n):
                if not i & half:
                    pair = vectors[i], vectors[i + half]
                    vectors[i] = self.b.shuffle_vector(*pair, low)
                    vectors[i + half] = self.b.shuffle_vector(*pair, high)
            half //= 2
        return vectors

    # --- constants -----------------------------------------------------------------------------------------------
    def splat(self, scalar: Value) -> Value:
        return self.splat_to(scalar, self.level.lanes)

    def splat_to(self, scalar: Value, count: int) -> Value:
        """`count` times the scalar."""
        kind = ir.VectorType(scalar.type, count)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(undefined, scalar, I32(0))
        zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
        return self.b.shuffle_vector(first, undefined, zeros)

    def constant(self, kind: ir.VectorType, value: float) -> Value:
        return ir.Constant(kind, [value] * kind.count)

    def float_vector(self, value: float) -> Value:
        return self.constant(self.floats, value)

    def int_vector(self, value: int) -> Value:
        return self.constant(self.ints, value)

    def byte_mask(self, value: int) -> Value:
        """`value` (0..255) in every byte, as 32-bit lanes."""
        return self.b.bitcast(self.constant(self.bytes, value - 256 if value > 127 else value), self.ints)

    # --- arithmetic ----------------------------------------------------------------------------------------------
    def call(self, name: str, result: ir.Type, *arguments: Value, fastmath: tuple[str, ...] = ()) -> Value:
        """Call an LLVM intrinsic by its full name."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = declared(self.b.module, kind, name)
        return self.b.call(function, arguments, fastmath=fastmath)

    def look_up(self, table: Value, index: Value) -> Value:
        """Byte i is table[index[i]], for indices below 16; the table has its 16 bytes in every 128 bits."""
        name = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b"}[self.level.lanes]
        found = self.call(name, self.bytes, self.b.bitcast(table, self.bytes), self.b.bitcast(index, self.bytes))
        return self.b.bitcast(found, self.ints)

    def _suffix(self, letter: str) -> str:
        return f"v{self.level.lanes}{letter}32"

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """x * y + z, rounded once."""
        return self.call(f"llvm.fma.{self._suffix('f')}", self.floats, x, y, z)

    def above_floor(self, x: Value) -> Value:
        """x - floor(x), with 16 lanes; 0 of an infinity."""
        down, every, as_set = I32(0b1001), I16(-1), I32(4)  # rounding down, no exception; all lanes; current mode
        return self.call("llvm.x86.avx512.mask.reduce.ps.512", self.floats, x, down, x, every, as_set)

    def scale_by_floor(self, x: Value, exponent: Value) -> Value:
        """x * 2^floor(exponent), with 16 lanes; 0 where the exponent is minus infinity."""
        return self.call("llvm.x86.avx512.mask.scalef.ps.512", self.floats, x, exponent, x, I16(-1), I32(4))

    def to_float(self, x: Value) -> Value:
        return self.b.sitofp(x, self.floats)

    def to_int(self, x: Value) -> Value:
        """Round to nearest, ties to even."""
        return self.call(f"llvm.lrint.{self._suffix('i')}.{self._suffix('f')}", self.ints, x)

    def maximum(self, x: Value, y: Value) -> Value:
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def clamp(self, x: Value, limit: float) -> Value:
        """x held within +-limit; NaN stays NaN."""
        high, low = self.float_vector(limit), self.float_vector(-limit)
        x = self.b.select(self.b.fcmp_ordered(">", x, high), high, x)
        return self.b.select(self.b.fcmp_ordered("<", x, low), low, x)

    def shift_right(self, x: Value, count: int) -> Value:
        """Logical shift of 32-bit lanes."""
        return self.b.lshr(x, self.int_vector(count)) if count else x

    def absolute_bits(self, x: Value) -> Value:
        """Bits of |x|: ordered as integers like the values, with NaN above infinity."""
        return self.b.and_(self.b.bitcast(x, self.ints), self.int_vector(0x7FFFFFFF))

    def maximum_int(self, x: Value, y: Value) -> Value:
        return self.b.select(self.b.icmp_signed(">", x, y), x, y)

    def reduce_maximum_int(self, x: Value) -> Value:
        return self.call(f"llvm.vector.reduce.smax.{self._suffix('i')}", I32, x)

    def reduce_add_int(self, x: Value) -> Value:
        return self.call(f"llvm.vector.reduce.add.{self._suffix('i')}", I32, x)

    def reduce_add(self, x: Value) -> Value:
        """Sum of the lanes, as a tree."""
        start = ir.Constant(F32, -0.0)
        return self.call(f"llvm.vector.reduce.fadd.{self._suffix('f')}", F32, start, x, fastmath=("reassoc",))

    # --- the dot product -----------------------------------------------------------------------------------------
    def dot(self, accumulator: Value, codes: Value, values: Value) -> Value:
        """accumulator[i] + sum_j u8(codes)[4i+j] * s8(values)[4i+j], exact modulo 2^32 at every level.

        Without the dedicated instruction the bytes are widened to 16 bit, even and odd ones apart, and multiplied
        pairwise: |255 * 127 * 2| < 2^31, so that nothing saturates (a byte-wise `vpmaddubsw` would, at 255 * 127 * 2 >
        32767).
        """
        if self.level.dot == "vpdpbusd":
            args = (accumulator, self.b.bitcast(codes, self.bytes), self.b.bitcast(values, self.bytes))
            return self.call(_VPDPBUSD[self.level.lanes], self.ints, *args)
        u, s = self.b.bitcast(codes, self.halves), self.b.bitcast(values, self.halves)
        eight = self.constant(self.halves, 8)
        even = self._pair_products(
            self.b.and_(u, self.constant(self.halves, 255)), self.b.ashr(self.b.shl(s, eight), eight)
        )
        odd = self._pair_products(self.b.lshr(u, eight), self.b.ashr(s, eight))
        return self.b.add(accumulator, self.b.add(even, odd))

    def dot_short(self, codes: Value, values: Value) -> Value:
        """u8(codes)[2i] * s8(values)[2i] + u8(codes)[2i+1] * s8(values)[2i+1] in 16 bits, where that suffices."""
        name = _PMADDUBSW[self.level.lanes]
        return self.call(name, self.halves, self.b.bitcast(codes, self.bytes), self.b.bitcast(values, self.bytes))

    def add_shorts(self, accumulator: Value, shorts: Value) -> Value:
        """accumulator[i] + shorts[2i] + shorts[2i+1]."""
        return self.b.add(accumulator, self._pair_products(shorts, self.constant(self.halves, 1)))

    def dot_pairs(self, accumulator: Value, x: Value, y: Value) -> Value:
        """accumulator[i] + x[2i] * y[2i] + x[2i+1] * y[2i+1] for 16-bit numbers, two in each 32-bit lane."""
        x, y = self.b.bitcast(x, self.halves), self.b.bitcast(y, self.halves)
        if self.level.dot == "vpdpbusd":
            return self.call(_VPDPWSSD[self.level.lanes], self.ints, accumulator, x, y)
        return self.b.add(accumulator, self._pair_products(x, y))

    def _pair_products(self, x: Value, y: Value) -> Value:
        """x[2i] * y[2i] + x[2i+1] * y[2i+1] of 16-bit lanes, in 32 bit."""
        if self.level.in_pairs:
            return self.call(_PMADDWD[self.level.lanes], self.ints, x, y)
        n = self.level.lanes
        wide = ir.VectorType(I32, 2 * n)
        product = self.b.mul(self.b.sext(x, wide), self.b.sext(y, wide))
        undefined = ir.Constant(wide, ir.Undefined)
        even, odd = (
            self.b.shuffle_vector(product, undefined, ir.Constant(self.ints, [2 * i + k for i in range(n)]))
            for k in (0, 1)
        )
        return self.b.add(even, odd)

    # --- control -------------------------------------------------------------------------------------------------
    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], list[Value]]
    ) -> list[Value]:
        """for i in range(count): carried = body(i, carried). `count` must be at least 1."""
        b = self.b
        before = b.block
        head, after = b.append_basic_block("loop"), b.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(I64(0), before)
        state = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            state.append(phi)
        result = body(index, list(state))
        following = b.add(index, I64(1), flags=("nsw", "nuw"))
        tail = b.block
        index.add_incoming(following, tail)
        for phi, value in zip(state, result, strict=True):
            phi.add_incoming(value, tail)
        b.cbranch(b.icmp_signed("<", following, count), head, after)
        b.position_at_end(after)
        return result

    def branch(self, condition: Value, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """Emit both, one of which runs."""
        b = self.b
        yes, no, after = (b.append_basic_block(name) for name in ("then", "otherwise", "joined"))
        b.cbranch(condition, yes, no)
        for block, emit in ((yes, then), (no, otherwise)):
            b.position_at_end(block)
            emit()
            b.branch(after)
        b.position_at_end(after)

    def ladder(self, count: Value, sizes: Sequence[int], body: Callable[[Value, int], None]) -> None:
        """body(first, size) over 0..count in pieces of `sizes`, which descend to 1: as many of each as fit, one less
        where a rest of a third or less would be left.
        """
        b = self.b
        first: Value = I64(0)
        for size in sizes:
            left = b.sub(count, first)
            pieces = b.sdiv(left, I64(size))
            if size > 2 and size != 4:  # 5 = 4 + 1, but 4 = 2 + 2, 7 = 4 + 2 + 1, 8 = 4 + 4
                rest = b.sub(left, self.times(pieces, size))
                awkward = b.and_(b.icmp_signed(">", rest, I64(0)), b.icmp_signed("<=", rest, I64(size // 3)))
                fewer = b.and_(awkward, b.icmp_signed(">", pieces, I64(0)))
                pieces = b.sub(pieces, b.zext(fewer, I64))

            def run(start: Value = first, size: int = size, pieces: Value = pieces) -> None:
                def piece(i: Value, _: list[Value]) -> list[Value]:
                    body(b.add(start, self.times(i, size)), size)
                    return []

                self.loop(pieces, [], piece)

            self.branch(b.icmp_signed(">", pieces, I64(0)), run, lambda: None)
            first = b.add(first, self.times(pieces, size))


def declared(module: Any, kind: Any, name: str) -> Value:
    """The function of this name in a module of LLVM's."""
    return module.globals.get(name) or ir.Function(module, kind, name)


def kernel(
    level: Level, arguments: int, result: Kind = "void", arguments_after: tuple[Kind, ...] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Make `emit(emitter, *values)` a Numba intrinsic of `arguments` 64-bit integers, then of the types given."""
    # Only who compiles pays for the import.
    from numba import types
    from numba.extending import intrinsic

    kinds = (*[types.int64] * arguments, *(getattr(types, kind) for kind in arguments_after))
    given = getattr(types, result)

    def decorate(emit: Callable[..., Any]) -> Any:
        def typed(typing_context: Any, *_: Any) -> Any:
            def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Value]) -> Any:
                emitted = emit(Emitter(builder, level), *values)
                return context.get_dummy_value() if result == "void" else emitted

            return given(*kinds), codegen

        # Numba reads the arity from the signature, which *args does not show.
        kind = inspect.Parameter.POSITIONAL_ONLY
        names = ["typing_context", *(f"a{i}" for i in range(len(kinds)))]
        typed.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        typed.__name__ = emit.__name__
        typed.__doc__ = emit.__doc__
        return intrinsic(typed)

    return decorate
