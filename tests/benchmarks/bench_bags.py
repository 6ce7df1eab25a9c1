"""Look-ups in a table and means over bags of them, in every form of the table, against torch.

    python -m tests.benchmarks.bench_bags [--rows 30522] [--columns 384] [--bags 64] [--length 32] [--seconds 0.5]

All contenders take turns in one process, on one thread. Bytes are those of the file for ours, of the memory for torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from statistics import median

import torch
from tests.benchmarks.tables import markdown
from torch import Tensor
from torch.nn import functional as F

from tersor.backends.numba.backend import NumbaBackend
from tersor.backends.numba.bags import SummedEmbedding
from tersor.backends.numba.forms import FORMS, Target
from tersor.backends.numba.gather import GatheredEmbedding
from tersor.compiler.stores import Codebook, Codes, Dense, Product, Store
from tersor.interleave import interleaved
from tersor.passes.quantize.uniform import quantise

Calls = dict[str, tuple[int, Callable[[], Tensor], Callable[[], Tensor]]]
"""Name -> bytes, look-up, means."""


def stores(weight: Tensor) -> Mapping[str, Store]:
    """Tables of this shape in the forms that methods choose; of codes only the number matters here."""
    rows, columns = weight.shape

    def product(block: int) -> Product:
        codes = torch.randint(0, 256, (rows, -(-columns // block)), dtype=torch.uint8)
        return Product(Codes(codes, 8), Dense.of(torch.randn(256, columns), "float16"), columns, block)

    nibbles = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    return {
        "float32": Dense(weight),
        "16 bits": Dense.of(weight, "float16"),
        "8 bits, row": quantise(weight, 8, columns, False),
        "4 bits, groups of 64": quantise(weight, 4, 64, False),
        "codebook of 16": Codebook(Codes(nibbles, 4), Dense.of(torch.randn(16), "float16")),
        "product 256 x 4": product(4),
        "product 256 x 8": product(8),
    }


def ours(weight: Tensor, index: Tensor) -> Calls:
    calls: Calls = {}
    for name, store in stores(weight).items():
        module = FORMS[store.kind].embedding(store, Target(NumbaBackend().level, 64))
        if not isinstance(module, GatheredEmbedding):
            raise TypeError(f"{name}: no gathered table")
        bag = SummedEmbedding(module, True, 1)
        calls[f"tersor {name}"] = (
            store.nbytes(), lambda module=module: module(index), lambda bag=bag: bag(index),
        )  # fmt: skip
    return calls


def torchs(weight: Tensor, index: Tensor) -> Calls:
    packed = torch.ops.quantized.embedding_bag_byte_prepack(weight)
    flat, offsets = index.flatten(), torch.arange(0, index.numel() + 1, index.shape[1])

    def byte(indices: Tensor, starts: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            packed, indices, starts, False, 0, False, None, None, True
        )
        return found

    each = torch.arange(index.numel() + 1)
    return {
        "torch float32": (
            4 * weight.numel(), lambda: F.embedding(index, weight), lambda: F.embedding_bag(index, weight, mode="mean"),
        ),
        "torch 8 bits": (packed.nbytes, lambda: byte(flat, each), lambda: byte(flat, offsets) / index.shape[1]),
    }  # fmt: skip


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 30522), ("columns", 384), ("bags", 64), ("length", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each contender")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(given.rows, given.columns) * 0.05
    index = torch.randint(0, given.rows, (given.bags, given.length))
    calls = torchs(weight, index) | ours(weight, index)
    lines = []
    looked = interleaved({n: c[1] for n, c in calls.items()}, seconds=given.seconds)
    pooled = interleaved({n: c[2] for n, c in calls.items()}, seconds=given.seconds)
    for name, (size, _, _) in calls.items():
        times = [f"{f(t[name]) * 1e6:.0f}" for t in (looked, pooled) for f in (min, median)]
        lines.append([name, f"{size / 1e6:.2f}", *times])
    print(f"{given.bags} x {given.length} rows of a table of {given.rows} x {given.columns}, microseconds\n")
    print(markdown(("form", "MB", "look-up: least", "median", "means: least", "median"), lines))


if __name__ == "__main__":
    main()
