"""16-bit floating storage (survey section 8.3; `quant.half`).

fp16: relative error at most 2^-11 of each weight, with one power-of-two exponent per tensor so that small weights do
not fall among the subnormals; bf16: 2^-8. The resident form stays float32: what shrinks is the file.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Dense


class Half(Params):
    format: Annotated[Literal["fp16", "bf16"], Field(description="16-bit format of the stored values")] = "fp16"


class HalfPrecision(Method[Half]):
    id = "quant.half"
    title = "16-bit floats"
    source = "survey section 8.3"
    kinds = frozenset({"linear", "embedding", "recurrent", "norm", "bias", "other"})
    by_row = True
    Params = Half

    def refuse(self, shape: tuple[int, ...], point: Half) -> Refusal | None:
        return None

    def pack(self, tensor: Tensor, point: Half, context: Context = Context()) -> Dense:
        return Dense.of(tensor, "float16" if point.format == "fp16" else "bfloat16")

    def examples(self) -> tuple[Half, ...]:
        return (Half(),)
