"""Product quantisation (survey section 3.3.3, equation 50; `quant.pq`).

The columns of W (m, n) are cut into sub-vectors of `block` columns. With a book of k centroids for each:

    min over books C and codes z of  sum_ig ||W_ig - C^g[z_ig]||^2,    bits = m ceil(n / block) log2 k + 16 k n

by Lloyd's algorithm, centroids in 16 bits. `books = one` clusters all sub-vectors together: 16 k block bits for the
book. With `rounding = compensated` sub-vectors are coded one after another, and the error of each is moved into those
that follow (`compensate`), where the data has shown which directions matter: with U of the error's form, a sub-vector
x is clustered as x U_gg^-1, whose plain error is the one that cannot be moved (van Baalen et al., "GPTVQ", 2024).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from tersor.compiler.method import Context, Method, Params, Refusal
from tersor.compiler.stores import Codes, Dense, Product
from tersor.passes.quantize.clusters import cluster, nearest_centroid
from tersor.passes.quantize.compensate import inverse_factor


class ProductParams(Params):
    codes: Annotated[Literal[16, 256], Field(description="centroids of a book")] = 256
    block: Annotated[Literal[2, 4, 8], Field(description="columns of a sub-vector")] = 4
    books: Annotated[
        Literal["each", "one"], Field(description="a book for each sub-vector of a row, or one for all")
    ] = "each"
    rounding: Annotated[
        Literal["nearest", "compensated"],
        Field(description="`compensated` moves errors into later columns; needs calibration data"),
    ] = "nearest"


def _halved(table: Tensor) -> Tensor:
    """Values that 16 bits hold exactly, also when they are held once more."""
    return Dense.of(Dense.of(table, "float16").values, "float16").values


def _parts(columns: int, block: int) -> list[slice]:
    return [slice(at, min(at + block, columns)) for at in range(0, columns, block)]


def _one_book(weight: Tensor, count: int, block: int) -> Tensor:
    """(levels, block) centroids of all sub-vectors, rows filled up with zeros."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % block))
    return _halved(cluster(padded.reshape(-1, block), count))


def _packed(codes: list[Tensor], books: list[Tensor], weight: Tensor, block: int) -> Product:
    """The store of codes (one tensor a sub-vector) into books, without the centroids that nothing uses."""
    columns = weight.shape[1]
    if len(books) == 1 < len(codes):
        used, flat = torch.unique(torch.cat(codes), return_inverse=True)
        table, new = books[0][used], list(flat.split(len(weight)))
    else:
        found = [torch.unique(z, return_inverse=True) for z in codes]
        table = torch.zeros(max(len(used) for used, _ in found), columns)
        for part, book, (used, _) in zip(_parts(columns, block), books, found, strict=True):
            table[: len(used), part] = book[used]
        new = [z for _, z in found]
    held = Dense.of(table, "float16")
    width = max(1, (held.shape[0] - 1).bit_length())
    return Product(Codes(torch.stack(new, 1).to(torch.uint8), width), held, columns, block)


def product(weight: Tensor, count: int, block: int, shared: bool) -> Product:
    """Every sub-vector to its nearest centroid."""
    parts = _parts(weight.shape[1], block)
    if shared and len(parts) > 1:
        book = _one_book(weight, count, block)
        codes = [nearest_centroid(weight[:, p], book[:, : p.stop - p.start]) for p in parts]
        return _packed(codes, [book], weight, block)
    fitted = [cluster(weight[:, p].contiguous(), count) for p in parts]
    # One exponent for all books, as the store has it.
    levels = max(map(len, fitted))
    table = _halved(torch.cat([torch.nn.functional.pad(f, (0, 0, 0, levels - len(f))) for f in fitted], 1))
    books = [table[: len(f), p] for f, p in zip(fitted, parts, strict=True)]
    return _packed([nearest_centroid(weight[:, p], b) for p, b in zip(parts, books, strict=True)], books, weight, block)


def compensated_product(weight: Tensor, form: Tensor, count: int, block: int, shared: bool) -> Product:
    """Sub-vectors one after another, each given the errors of those before it."""
    factor = inverse_factor(form)
    rest = weight.clone()
    parts = _parts(weight.shape[1], block)
    one = _one_book(weight, count, block) if shared and len(parts) > 1 else None
    codes, books = [], []
    for part in parts:
        own = factor[part, part]
        into = torch.linalg.inv(own.double()).float()
        given = rest[:, part] @ into
        if one is None:
            books.append(_halved(cluster(given, count) @ own))
        book = books[-1] if one is None else one[:, : part.stop - part.start]
        chosen = nearest_centroid(given, book @ into)
        codes.append(chosen)
        error = given - (book @ into)[chosen]
        rest[:, part.stop :].addmm_(error, factor[part, part.stop :], alpha=-1)
    return _packed(codes, books if one is None else [one], weight, block)


class ProductQuantisation(Method[ProductParams]):
    id = "quant.pq"
    title = "product quantisation"
    source = "survey section 3.3.3, equation 50"
    kinds = frozenset({"linear", "embedding", "recurrent"})
    Params = ProductParams

    def refuse(self, shape: tuple[int, ...], point: ProductParams) -> Refusal | None:
        if len(shape) != 2 or 0 in shape:
            return Refusal(f"sub-vectors of rows need a matrix, not shape {shape}")
        return None

    def wants_form(self, point: ProductParams) -> bool:
        return point.rounding == "compensated"

    def pack(self, tensor: Tensor, point: ProductParams, context: Context = Context()) -> Product:
        shared = point.books == "one"
        if self.wants_form(point) and context.form is not None:
            return compensated_product(tensor, context.form, point.codes, point.block, shared)
        return product(tensor, point.codes, point.block, shared)

    def examples(self) -> tuple[ProductParams, ...]:
        return tuple(ProductParams(codes=16, block=block) for block in (8, 4, 2))
