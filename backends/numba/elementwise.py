"""Elementwise functions of a vector register, and the helpers that Numba's scalar code needs to work on addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tersor.backends.numba.emitter import F32, I64, Emitter, Value, kernel
from tersor.backends.numba.features import Level, level_named

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True)
class ActivationSpec:
    """An activation compiled for a level."""

    level: str
    activation: Activation

    @property
    def name(self) -> str:
        return f"activation_{self.level}_{self.activation}"


Unary = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "exp", "neg", "rsqrt"]
Binary = Literal["add", "sub", "mul", "div"]


@dataclass(frozen=True)
class UnarySpec:
    """y = f(x), compiled for a level."""

    level: str
    function: Unary

    @property
    def name(self) -> str:
        return f"unary_{self.level}_{self.function}"


@dataclass(frozen=True)
class BinarySpec:
    """z = f(x, y), compiled for a level."""

    level: str
    function: Binary

    @property
    def name(self) -> str:
        return f"binary_{self.level}_{self.function}"


@dataclass(frozen=True)
class CopySpec:
    """A strided copy compiled for a level."""

    level: str

    @property
    def name(self) -> str:
        return f"copy_{self.level}"


def exp(e: Emitter, x: Value) -> Value:
    """e^x, relative error below 2e-7 on [-80, 88], clamped outside: 2^n p(x - n ln 2) (Cephes `expf`).

    The lower clamp keeps products with the result out of the denormal numbers, which are slow.
    """
    b = e.b
    high, low = e.float_vector(88.0), e.float_vector(-80.0)
    x = b.select(b.fcmp_ordered(">", x, high), high, x)  # written so that NaN stays NaN
    x = b.select(b.fcmp_ordered("<", x, low), low, x)
    n = e.to_int(b.fmul(x, e.float_vector(1.4426950408889634)))
    whole = e.to_float(n)
    r = e.fma(whole, e.float_vector(-0.693359375), x)
    r = e.fma(whole, e.float_vector(2.12194440e-4), r)
    p = e.float_vector(1.9875691500e-4)
    for c in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = e.fma(p, r, e.float_vector(c))
    p = e.fma(p, b.fmul(r, r), b.fadd(r, e.float_vector(1.0)))
    power = b.shl(b.add(n, e.int_vector(127)), e.int_vector(23))
    return b.fmul(p, b.bitcast(power, e.floats))


def _logistic_times(e: Emitter, x: Value, argument: Value) -> Value:
    """x / (1 + e^-argument)."""
    return e.b.fdiv(x, e.b.fadd(exp(e, e.b.fneg(argument)), e.float_vector(1.0)))


# erf(x / sqrt 2) / x on |x| <= _ERF_END as a polynomial in 2 (x / _ERF_END)^2 - 1, highest power first: a minimax fit,
# raised by 2.5e-7 of itself so that the ends reach 1.
_ERF_END = 5.2
_ERF = (
    0.000389133347, -0.00111003476, 0.00124559982, -0.0019972804, 0.00527730724, -0.0100924196, 0.0160448384,
    -0.024727786, 0.0362615772, -0.0495219007, 0.063925378, -0.0798513144, 0.100052215, -0.135487631, 0.271900028,
)  # fmt: skip


def gelu(e: Emitter, x: Value) -> Value:
    """x Phi(x), Phi within 2.3e-7, exactly 0 or 1 beyond +-5.2 (a division and an exponential would cost twice as
    much as the polynomial).
    """
    b = e.b
    z = e.clamp(x, _ERF_END)
    s = e.fma(b.fmul(z, z), e.float_vector(2 / _ERF_END**2), e.float_vector(-1.0))
    p = e.float_vector(_ERF[0])
    for c in _ERF[1:]:
        p = e.fma(p, s, e.float_vector(c))
    half = b.fmul(x, e.float_vector(0.5))
    return e.fma(half, e.clamp(b.fmul(p, z), 1.0), half)


# erf(x / sqrt 2) / x on |x| <= _SHORT_END as a polynomial in x^2, highest power first: a minimax fit whose product with
# x is 1 at the end.
_SHORT_END = 3.8
_SHORT_ERF = (
    7.66028491e-08, -4.70736401e-06, 0.000124503349, -0.00189278049, 0.0187751553, -0.131750833, 0.797581046,
)  # fmt: skip


def gelu_short(e: Emitter, x: Value) -> Value:
    """x Phi(x), Phi within 7.4e-5, and within 1e-6 of 0 or 1 beyond +-3.8; half the work of `gelu`.

    It is meant for a result that is rounded to 8 bits, whose half step is 1 / 254 of the largest value.
    """
    b = e.b
    z = e.clamp(x, _SHORT_END)
    square = b.fmul(z, z)
    p = e.float_vector(_SHORT_ERF[0])
    for c in _SHORT_ERF[1:]:
        p = e.fma(p, square, e.float_vector(c))
    half = b.fmul(x, e.float_vector(0.5))
    return e.fma(half, b.fmul(p, z), half)


def gelu_tanh(e: Emitter, x: Value) -> Value:
    """x / (1 + e^(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    b = e.b
    square = b.fmul(x, x)
    inner = e.fma(square, e.float_vector(2 * 0.7978845608028654 * 0.044715), e.float_vector(2 * 0.7978845608028654))
    return _logistic_times(e, x, b.fmul(x, inner))


def tanh(e: Emitter, x: Value) -> Value:
    """tanh x within 2e-7: 1 - 2 / (1 + e^2x), and x - x^3/3 + 2x^5/15 - 17x^7/315 where |x| < 0.125 (below, the former
    loses its digits)."""
    b = e.b
    far = b.fsub(e.float_vector(1.0), b.fdiv(e.float_vector(2.0), b.fadd(exp(e, b.fadd(x, x)), e.float_vector(1.0))))
    square = b.fmul(x, x)
    series = e.float_vector(-17 / 315)
    for c in (2 / 15, -1 / 3):
        series = e.fma(series, square, e.float_vector(c))
    near = e.fma(b.fmul(series, square), x, x)
    small = b.fcmp_ordered("<", square, e.float_vector(0.125**2))
    return b.select(small, near, far)


def apply(e: Emitter, activation: Activation | Unary, x: Value) -> Value:
    """activation(x)."""
    if activation == "tanh":
        return tanh(e, x)
    if activation == "sigmoid":
        return _logistic_times(e, e.float_vector(1.0), x)
    if activation == "exp":
        return exp(e, x)
    if activation == "neg":
        return e.b.fneg(x)
    if activation == "rsqrt":
        root = e.call(f"llvm.sqrt.v{e.level.lanes}f32", e.floats, x)
        return e.b.fdiv(e.float_vector(1.0), root)
    if activation == "relu":
        return e.b.select(e.b.fcmp_ordered("<", x, e.float_vector(0.0)), e.float_vector(0.0), x)
    if activation == "gelu":
        return gelu(e, x)
    if activation == "gelu_tanh":
        return gelu_tanh(e, x)
    if activation == "silu":
        return _logistic_times(e, x, x)
    return x


def make_activation(spec: ActivationSpec) -> Any:
    """activate(y, vectors): apply in place to `vectors` vectors."""
    level = level_named(spec.level)

    @kernel(level, 2)
    def activate(e: Emitter, y: Value, vectors: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            address = e.at(y, e.times(i, 4 * level.lanes))
            e.store(address, apply(e, spec.activation, e.load_floats(address)))
            return []

        e.loop(vectors, [], body)

    return activate


def make_copy(level: Level) -> Any:
    """copy(target, source, count): `count` floats, at least one."""

    @kernel(level, 3)
    def copy(e: Emitter, target: Value, source: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(target, e.times(i, 4)), e.load(e.at(source, e.times(i, 4)), F32))
            return []

        e.loop(count, [], body)

    return copy


def make_zero(level: Level) -> Any:
    """zero(target, count): `count` floats, at least one."""

    @kernel(level, 2)
    def zero(e: Emitter, target: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(target, e.times(i, 4)), F32(0.0))
            return []

        e.loop(count, [], body)

    return zero


def make_spread_copy(level: Level) -> Any:
    """spread_copy(target, source, stride, count): `count` floats `stride` bytes apart become adjacent, at least one."""

    @kernel(level, 4)
    def spread_copy(e: Emitter, target: Value, source: Value, stride: Value, count: Value) -> None:
        def body(i: Value, _: list[Value]) -> list[Value]:
            e.store(e.at(target, e.times(i, 4)), e.load(e.at(source, e.times(i, stride)), F32))
            return []

        e.loop(count, [], body)

    return spread_copy


def make_map(level: Level, function: Unary) -> Any:
    """map(y, x, count): y = f(x) for `count` floats, one by one after the last whole vector."""

    @kernel(level, 3)
    def map_(e: Emitter, y: Value, x: Value, count: Value) -> None:
        def body(address: Value) -> Value:
            return apply(e, function, e.load_floats(e.at(x, address)))

        _each(e, y, count, body, lambda address: apply(e, function, e.broadcast_float(e.at(x, address))))

    return map_


def make_combine(level: Level, function: Binary) -> Any:
    """combine(z, x, y, count, x_step, y_step): z = f(x, y) for `count` floats; a step of 0 repeats one float."""

    @kernel(level, 6)
    def combine(e: Emitter, z: Value, x: Value, y: Value, count: Value, x_step: Value, y_step: Value) -> None:
        b = e.b
        work = {"add": b.fadd, "sub": b.fsub, "mul": b.fmul, "div": b.fdiv}[function]

        def vector(source: Value, step: Value, address: Value) -> Value:
            whole = b.icmp_signed("!=", step, I64(0))
            near = e.at(source, b.mul(step, address))
            return b.select(whole, e.load_floats(b.select(whole, near, z)), e.broadcast_float(near))

        def one(source: Value, step: Value, address: Value) -> Value:
            return e.broadcast_float(e.at(source, b.mul(step, address)))

        _each(
            e,
            z,
            count,
            lambda address: work(vector(x, x_step, address), vector(y, y_step, address)),
            lambda address: work(one(x, x_step, address), one(y, y_step, address)),
        )

    return combine


def _each(
    e: Emitter, target: Value, count: Value, vector: Callable[[Value], Value], one: Callable[[Value], Value]
) -> None:
    """Store `vector(byte offset)` for whole vectors, then lane 0 of `one(byte offset)` for the floats left."""
    b = e.b
    lanes = e.level.lanes
    whole = b.sdiv(count, I64(lanes))

    def some(number: Value, body: Callable[[Value], None]) -> None:
        with b.if_then(b.icmp_signed(">", number, I64(0))):

            def step(i: Value, _: list[Value]) -> list[Value]:
                body(i)
                return []

            e.loop(number, [], step)

    def store_vector(i: Value) -> None:
        offset = e.times(i, 4 * lanes)
        e.store(e.at(target, offset), vector(offset))

    def store_one(i: Value) -> None:
        offset = e.times(b.add(b.mul(whole, I64(lanes)), i), 4)
        e.store(e.at(target, offset), b.extract_element(one(offset), I64(0)))

    some(whole, store_vector)
    some(b.srem(count, I64(lanes)), store_one)
