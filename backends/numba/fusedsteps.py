"""Steps that do the work of several, so that the floats in between stay in the nearest cache."""

from __future__ import annotations

from tersor.backends.numba.build import kernel_address
from tersor.backends.numba.elementwise import Activation
from tersor.backends.numba.features import level_named
from tersor.backends.numba.fusedspec import MultiplyRoundSpec, NormRoundSpec
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.microkernels import LinearSpec, panel_work
from tersor.backends.numba.native.values import Operand
from tersor.backends.numba.quantiser import QuantiseSpec
from tersor.backends.numba.rounding import RoundSpec, round_work
from tersor.backends.numba.rowkernels import NormSpec
from tersor.backends.numba.steps import Norm, Step, panel_cost, raised_bytes

_ROWS = 96  # of a unit: its floats take 24 KiB in groups of 64, and a panel is read once for all of them


def rounds_whole(reader: Layout) -> bool:
    """Whether `norm_round_step` writes what this linear reads: a scale for each of its groups, of which no column is
    padding.
    """
    return reader.activation_span == reader.group and reader.padded == reader.columns


def rounds_itself(level: str, layout: Layout, reader: Layout) -> bool:
    """Whether `multiply_round_step` takes this linear and the linear that reads its result: its input must have groups,
    which are whole panels.
    """
    grouped = bool(reader.activation_group) and rounds_whole(reader)
    return layout.rows == reader.columns and grouped and reader.group % level_named(level).panel == 0


def needs_total(reader: Layout) -> bool:
    """Whether a linear reads the total of a row's record, which `multiply_round_step` does not write."""
    return reader.shifted and reader.kind != "group"


def multiply_round_step(
    level: str,
    layout: Layout,
    reader: Layout,
    activation: Activation,
    rows: int,
    rounded: tuple[Operand, Operand],
    weights: tuple[Operand, Operand, Operand, Operand],
    result: tuple[Operand, Operand],
) -> Step:
    """The result (q, records) that `reader` multiplies, from rounded activations (q, records) and packed (codes, scale,
    shift, bias); see `rounds_itself`.

    activation(z) with z = x @ w^T + bias. GELU is within 7.4e-5 |z|.
    """
    linear = LinearSpec(level, layout.bits, layout.kind, layout.shifted, room=layout.room)
    spec = MultiplyRoundSpec(linear, RoundSpec(level, activation))
    block = min(max(rows, 1), _ROWS)
    described = level_named(level)
    work = 4 * block * reader.group + raised_bytes(layout, block)
    work += max(round_work(described, reader.group), panel_work(described, layout))
    cost = panel_cost(described, layout, reader.group, block) + block * reader.group
    shape = (layout.group, layout.groups, block)
    target = (*result, reader.group, reader.groups)
    units = -(-rows // block) * reader.groups
    kernel = kernel_address(spec, "glue_multiply_round")
    return Step("multiply and round", kernel, (rows, *rounded, *weights, *shape, *target), units, cost, work)


def norm_round_step(level: str, norm: Norm, reader: Layout, result: tuple[Operand, Operand]) -> Step:
    """`norm_step`, and its result as `reader` multiplies it (q, records); see `rounds_whole`."""
    rows, columns = norm.shape
    lanes = level_named(level).lanes
    target = (*result, reader.group, reader.groups)
    spec = NormRoundSpec(NormSpec(level, norm.root), RoundSpec(level))
    work = round_work(level_named(level), reader.group)
    operands = (*norm.operands, rows, *target)
    kernel = kernel_address(spec, "glue_norm_round")
    return Step("norm and round", kernel, operands, -(-rows // lanes), 0.6 * lanes * columns, work)


def total_step(level: str, reader: Layout, rows: int, records: Operand) -> Step:
    """Write the total of every row's record, the sum over its groups; see `needs_total`."""
    kernel = kernel_address(QuantiseSpec(level), "glue_total")
    return Step("total", kernel, (records, reader.groups), rows, 2.0 * reader.groups)
