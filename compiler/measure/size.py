"""What a store takes in an artifact."""

from __future__ import annotations

import json

from tersor.compiler.site import Site
from tersor.compiler.stores import Codes, Dense, Store
from tersor.compiler.stores.base import join

HEADER_ENTRY = len('"":{"dtype":"F16","shape":[0000000],"data_offsets":[00000000,00000000]},')
"""Bytes of one array in the header of a tensor file, to within the digits of its offsets; without its name."""


def described_bytes(site: Site, store: Store) -> int:
    """What a site takes in the artifact: its arrays, their header entries and the description of the store."""
    headers = sum(HEADER_ENTRY + len(join(site.name, name)) for name in store.arrays())
    described = json.dumps({site.name: store.spec()}, separators=(",", ":"))
    return store.nbytes() + headers + len(described)


def of_rows(store: Store, rows: int) -> Store:
    """The form of a store that keeps its rows apart, for another number of rows: it has a size but no values."""
    match store:
        case Codes():
            return Codes(store.values.new_empty((rows, *store.shape[1:]), device="meta"), store.width)
        case Dense():
            values = store.values.new_empty((rows, *store.shape[1:]), device="meta")
            return Dense(values, store.dtype, store.exponent)
    return store.rebuilt({name: of_rows(part, rows) for name, part in store.parts().items()})
