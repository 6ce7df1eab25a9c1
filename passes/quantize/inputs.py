"""What the inputs of a linear become where a kernel multiplies integers: 8 bits, symmetric, with a scale for some
columns of a row, found anew for every input (survey section 3.3.5).

With x_g the columns of group g of one row

    a_g = max|x_g| / 127,   q_g = round(x_g / a_g),   what it stands for: a_g q_g

Small groups keep apart what is large in a few columns (outliers); wide ones cost less time.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tersor.compiler.stores.affine import INPUT_GROUP

Activations = Annotated[
    Literal[32, 64, 128, "row"],
    Field(description="columns of the input that share a scale where a kernel rounds it to 8 bits"),
]
USUAL: Activations = INPUT_GROUP


def columns_of(activations: Activations) -> int:
    """Columns that share a scale; 0 for those of a row."""
    return 0 if activations == "row" else activations
