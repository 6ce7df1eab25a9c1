"""The gates of recurrent cells, as one pass over the products of a row.

u = W_ih x + b_ih comes for all time steps at once, z = W_hh h + b_hh for one; in both, gate k of every unit lies at
k * size bytes, in torch's order. With s the logistic function:

    lstm      i, f, g, o = u + z;  c' = s(f) c + s(i) tanh(g);  h' = s(o) tanh(c')
    gru       r = s(u_r + z_r), t = s(u_t + z_t), n = tanh(u_n + r z_n);  h' = (1 - t) n + t h
    rnn_tanh  h' = tanh(u + z)
    rnn_relu  h' = max(u + z, 0)

tanh and s are quotients of e^-x, |x| <= 30 (beyond, the limit is within 1e-13), so that products of two stay in the
range of a float. e^-x = 2^t with t = -x log2(e) rounded to a float: that error, and 1.6e-7 of the polynomial, count
most where s is steep, and leave s and tanh within 3e-7 of the exact values; both are exact at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tersor.backends.numba.emitter import Emitter, Value, kernel
from tersor.backends.numba.features import level_named

Mode = Literal["lstm", "gru", "rnn_tanh", "rnn_relu"]
MODES: tuple[Mode, ...] = get_args(Mode)
GATES: dict[Mode, int] = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}

_END = 30.0
_LOG2_E = 1.4426950408889634
# 2^f on |f| <= 1/2, highest power first: minimax in relative error among those with p(0) = 1.
_EXP2 = (0.00132647273, 0.00967151299, 0.0555073358, 0.240222424, 0.693147004, 1.0)


@dataclass(frozen=True)
class CellSpec:
    """A recurrence compiled for a level."""

    level: str
    mode: Mode

    @property
    def name(self) -> str:
        return f"recurrence_{self.level}_{self.mode}"


class _Gates:
    """Emits the gates of one vector of units."""

    def __init__(self, e: Emitter) -> None:
        self.e = e
        self.one = e.float_vector(1.0)

    def decay(self, x: Value, factor: float) -> Value:
        """e^(-factor x); NaN stays NaN."""
        e, b = self.e, self.e.b
        t = e.clamp(b.fmul(x, e.float_vector(-factor * _LOG2_E)), _END * _LOG2_E)
        n = e.to_int(t)
        f = b.fsub(t, e.to_float(n))
        p = e.float_vector(_EXP2[0])
        for c in _EXP2[1:]:
            p = e.fma(p, f, e.float_vector(c))
        return b.bitcast(b.add(b.bitcast(p, e.ints), b.shl(n, e.int_vector(23))), e.floats)

    def logistic_times(self, x: Value, top: Value) -> Value:
        """s(x) top."""
        return self.e.b.fdiv(top, self.e.b.fadd(self.one, self.decay(x, 1.0)))

    def tanh(self, x: Value) -> Value:
        b, d = self.e.b, self.decay(x, 2.0)
        return b.fdiv(b.fsub(self.one, d), b.fadd(self.one, d))

    def logistic_tanh(self, x: Value, y: Value) -> Value:
        """s(x) tanh(y) with one division."""
        b, s, t = self.e.b, self.decay(x, 1.0), self.decay(y, 2.0)
        return b.fdiv(b.fsub(self.one, t), b.fmul(b.fadd(self.one, s), b.fadd(self.one, t)))

    def lstm(self, u: list[Value], z: list[Value], c: Value) -> tuple[Value, Value]:
        """(h', c')."""
        i, f, g, o = (self.e.b.fadd(a, b) for a, b in zip(u, z, strict=True))
        new = self.e.b.fadd(self.logistic_times(f, c), self.logistic_tanh(i, g))
        return self.logistic_tanh(o, new), new

    def gru(self, u: list[Value], z: list[Value], h: Value) -> Value:
        """h' = n + s(t) (h - n)."""
        e, b = self.e, self.e.b
        reset = self.logistic_times(b.fadd(u[0], z[0]), self.one)
        n = self.tanh(e.fma(reset, z[2], u[2]))
        return b.fadd(n, self.logistic_times(b.fadd(u[1], z[1]), b.fsub(h, n)))

    def plain(self, mode: Mode, u: Value, z: Value) -> Value:
        e, total = self.e, self.e.b.fadd(u, z)
        if mode == "rnn_tanh":
            return self.tanh(total)
        zero = e.float_vector(0.0)
        return e.b.select(e.b.fcmp_ordered("<", total, zero), zero, total)  # NaN stays NaN


def make_cell(spec: CellSpec) -> Any:
    """cell(u, z, size, h, c, vectors): one row; h and, for an LSTM, c are updated in place."""
    level = level_named(spec.level)

    @kernel(level, 6)
    def cell(e: Emitter, u: Value, z: Value, size: Value, h: Value, c: Value, vectors: Value) -> None:
        def body(first: Value, count: int) -> None:
            # One vector's operations wait for each other; those of two, as one of twice the width, alternate.
            wide = Emitter(e.b, replace(level, lanes=count * level.lanes))
            gates = _Gates(wide)
            offset = e.times(first, 4 * level.lanes)
            places = [e.at(offset, e.times(size, k)) for k in range(GATES[spec.mode])]
            inputs, products = ([wide.load_floats(e.at(base, place)) for place in places] for base in (u, z))
            state = e.at(h, offset)
            if spec.mode == "lstm":
                memory = e.at(c, offset)
                new, kept = gates.lstm(inputs, products, wide.load_floats(memory))
                wide.store(memory, kept)
            elif spec.mode == "gru":
                new = gates.gru(inputs, products, wide.load_floats(state))
            else:
                new = gates.plain(spec.mode, inputs[0], products[0])
            wide.store(state, new)

        e.ladder(vectors, (2, 1), body)

    return cell
