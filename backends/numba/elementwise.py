"""Elementwise functions of a vector register, and the helpers that Numba's scalar code needs to work on addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tersor.backends.numba.emitter import F32, Emitter, Value, kernel
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


def gelu_tanh(e: Emitter, x: Value) -> Value:
    """x / (1 + e^(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    b = e.b
    square = b.fmul(x, x)
    inner = e.fma(square, e.float_vector(2 * 0.7978845608028654 * 0.044715), e.float_vector(2 * 0.7978845608028654))
    return _logistic_times(e, x, b.fmul(x, inner))


def apply(e: Emitter, activation: Activation, x: Value) -> Value:
    """activation(x)."""
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
