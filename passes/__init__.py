"""The methods: the compiler's table of contents. A method is one file of its family and one line here."""

from __future__ import annotations

from typing import Any

from tersor.compiler.method import Method
from tersor.passes.decompose.svd import TruncatedSvd
from tersor.passes.prune.bank import BankPruning
from tersor.passes.prune.block import BlockPruning
from tersor.passes.prune.magnitude import ClassBlind, ClassDistribution, ClassUniform, MagnitudePruning
from tersor.passes.quantize.half import HalfPrecision
from tersor.passes.quantize.int8 import Int8Quantisation
from tersor.passes.quantize.kmeans import KMeansCodes
from tersor.passes.quantize.product import ProductQuantisation
from tersor.passes.quantize.uniform import UniformQuantisation

METHODS: tuple[Method[Any], ...] = (
    UniformQuantisation(),
    Int8Quantisation(),
    HalfPrecision(),
    KMeansCodes(),
    ProductQuantisation(),
    MagnitudePruning(),
    ClassBlind(),
    ClassUniform(),
    ClassDistribution(),
    BlockPruning(),
    BankPruning(),
    TruncatedSvd(),
)
