"""The contenders of this project: the one file that knows how its kernels are reached."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from tests.benchmarks.contender import COPIES, Array, Linear, Model, Subject, several
from tests.benchmarks.peers.torch import of_module
from torch import Tensor, nn

import tersor
from tersor.backends.numba.features import detect
from tersor.backends.numba.forms.affine import operands
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.native.graph import NativeGraph
from tersor.backends.numba.native.lower import HANDLERS
from tersor.compiler.measure.seconds import ring_of
from tersor.passes.quantize.uniform import Uniform, UniformQuantisation

POLICY = "for linear or embedding or recurrent choose int8()"
POLICIES = {
    f"tersor 8 bits, activations by {group}": POLICY.replace("int8()", f"int8(activations = {group})")
    for group in ("64", "128", "row")
}
NARROW = {  # codes whose products fit 16 bits
    f"tersor {bits} narrow bits, activations by {group}": POLICY.replace(
        "int8()", f"uniform(bits = {bits}, group = row, symmetric = true, activations = {group}, accumulator = 16)"
    )
    for bits in (8, 7)
    for group in ("64", "row")
}
# For the matrix that is read at every step.
STATES = "\nfor role recurrent.hidden choose uniform(bits = 4, group = row, activations = row)"
FORMS = ((8, 0), (4, 32), (4, 128))  # bits a weight; columns that share a scale, 0: all of the row
FEWER = ((7, 0), (6, 0))  # where they have kernels of their own, faster than that of 8 bits


def linears(weight: Array, x: Array) -> Iterator[tuple[str, Linear]]:
    """On as many threads as torch has; each as the native program of a graph, which is how a model runs it."""
    inputs = [torch.from_numpy(x.copy()) for _ in range(COPIES)]
    level = detect()
    forms = [(*form, False) for form in FORMS]
    if level.in_pairs:
        forms += [*((*form, False) for form in FEWER), (8, 0, True), (7, 0, True)]
    for bits, group, narrow in forms:
        made = partial(narrow_row, bits=bits) if narrow else partial(quantised, bits=bits, group=group)
        leaves = [made(torch.from_numpy(held)) for held in several(weight)]
        graph = ring_of(leaves[:1], COPIES)
        for i, leaf in enumerate(leaves):
            graph.set_submodule(f"leaf{i}_0", leaf)
        bound = NativeGraph(graph.eval(), HANDLERS, level.name).bind(*inputs)
        size = weight.size * bits // 8 + 4 * weight.size // (group or weight.shape[1])
        label = f"tersor {bits}{' narrow' * narrow} bits, {f'groups of {group}' if group else 'row'}"
        yield label, Linear(bits, size, lambda bound=bound: bound()[0].numpy(), bits - narrow)


def narrow_row(weight: Tensor, bits: int) -> QuantizedLinear:
    """One scale a row, wide enough that sums of products fit 16 bits."""
    point = Uniform(bits=bits, group="row", symmetric=True, accumulator=16)
    store = UniformQuantisation().pack(weight, point)
    codes, scale, zero, *_ = operands(store)
    return QuantizedLinear.from_codes(codes, scale, zero, bits, activation_group=0)


def quantised(weight: Tensor, bits: int, group: int) -> QuantizedLinear:
    """Symmetric, one scale a row or a group; activations have groups as wide."""
    rows, columns = weight.shape
    groups = weight.view(rows, -1, group or columns)
    center = 1 << (bits - 1)
    scale = (groups.abs().amax(-1) / (center - 1)).clamp_min(1e-12)
    codes = ((groups / scale[..., None]).round() + center).to(torch.uint8).view(rows, columns)
    zero = torch.full_like(scale, center)
    return QuantizedLinear.from_codes(codes, scale, zero, bits, group=group, activation_group=group)


def models(subject: Subject) -> Iterator[tuple[str, Model]]:
    """On as many threads as torch has."""
    example = {name: torch.from_numpy(value) for name, value in subject.example.items()}
    recurrent = any(isinstance(module, nn.RNNBase) for module in subject.module.modules())
    policies = POLICIES | (NARROW if detect().in_pairs else {})
    if recurrent:
        policies |= {f"{label}, 4-bit states": policy + STATES for label, policy in policies.items() if "row" in label}
    for label, policy in policies.items():
        result = tersor.compile(subject.module, tersor.Policy.parse(policy), example, backend="numba")
        yield label, of_module(result.module, list(example))
