"""8-bit inference quantisation: one scale per output row (survey sections 3.3.5 and 8.1; `quant.int8`).

The weight is `quant.uniform` at 8 bits with `group = row`; where a kernel claims the store, activations become 8-bit
dynamically and the product is an integer one, rescaled at the end.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Affine
from tersor.passes.quantize.inputs import USUAL, Activations, columns_of
from tersor.passes.quantize.narrow import Accumulator, narrow, refused
from tersor.passes.quantize.uniform import quantise


class Int8(Params):
    symmetric: Annotated[bool, Field(description="levels symmetric around zero, no zero point stored")] = True
    activations: Activations = USUAL
    accumulator: Accumulator = 32


class Int8Quantisation(Method[Int8]):
    id = "quant.int8"
    title = "8-bit inference quantisation"
    source = "survey sections 3.3.5 and 8.1, equations 37-39"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    by_row = True
    Params = Int8

    def refuse(self, shape: tuple[int, ...], point: Int8) -> Refusal | None:
        if len(shape) != 2 or 0 in shape:
            return Refusal(f"rows of 8-bit codes need a matrix, not shape {shape}")
        return refused(point.accumulator, point.symmetric)

    def input_group(self, point: Int8) -> int:
        return columns_of(point.activations)

    def weights(self, point: Int8) -> Int8:
        return point.model_copy(update={"activations": USUAL})

    def pack(self, tensor: Tensor, point: Int8, context: Context = Context()) -> Affine:
        def make(rows: Tensor, wider: Tensor | float) -> Affine:
            return quantise(rows, 8, tensor.shape[1], point.symmetric, wider)

        store = narrow(tensor, 8, tensor.shape[1], make) if point.accumulator == 16 else make(tensor, 1.0)
        return store.reading(columns_of(point.activations))

    def examples(self) -> tuple[Int8, ...]:
        return (Int8(),)
