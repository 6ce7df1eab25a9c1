"""The files of an artifact that loading reads, by name.

manifest.json                 format, and name, size and SHA-256 of the other two: what it names is the artifact
graph-CHECKSUM.json           the graph, its leaf modules, how it is called, how each weight is stored
weights-CHECKSUM.safetensors  the arrays of the stores, bit-packed, and the buffers

beside.json, which loading does not read, names the documents that were written with the artifact, and which one it was.
The data files are named by the first 16 digits of their SHA-256, so that two artifacts never share a name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping

FORMAT = 2
MANIFEST, BESIDE = "manifest.json", "beside.json"
GRAPH, WEIGHTS = "graph", "weights"
SUFFIXES = {GRAPH: ".json", WEIGHTS: ".safetensors"}
STAGING = ".writing-"

_DATA = {part: re.compile(rf"{part}-[0-9a-f]{{16}}\{suffix}") for part, suffix in SUFFIXES.items()}


def data_name(part: str, sha256: str) -> str:
    """`graph-0123456789abcdef.json`."""
    return f"{part}-{sha256[:16]}{SUFFIXES[part]}"


def is_data(name: str, part: str | None = None) -> bool:
    """Whether a file name is one that an artifact gives to its data."""
    return any(_DATA[p].fullmatch(name) for p in ((part,) if part else SUFFIXES))


def beside_of(manifest: bytes, documents: Iterable[str]) -> bytes:
    """What `beside.json` holds."""
    artifact = hashlib.sha256(manifest).hexdigest()
    return json.dumps({"artifact": artifact, "files": sorted(documents)}, indent=1).encode() + b"\n"


def files_of(graph: bytes, weights: bytes) -> dict[str, bytes]:
    """The files of an artifact: the data under their names, and the manifest that names them."""
    parts = {GRAPH: graph, WEIGHTS: weights}
    checksums = {part: hashlib.sha256(content).hexdigest() for part, content in parts.items()}
    files = {data_name(part, checksums[part]): content for part, content in parts.items()}
    return {**files, MANIFEST: _manifest({part: (len(c), checksums[part]) for part, c in parts.items()})}


def total_bytes(graph: int, weights: int) -> int:
    """What the files of an artifact take, given the sizes of its data: all checksums are of one length."""
    return graph + weights + len(_manifest({GRAPH: (graph, 64 * "0"), WEIGHTS: (weights, 64 * "0")}))


def _manifest(parts: Mapping[str, tuple[int, str]]) -> bytes:
    """The manifest of data of so many bytes with these checksums."""
    listed = {
        part: {"file": data_name(part, checksum), "bytes": size, "sha256": checksum}
        for part, (size, checksum) in parts.items()
    }
    return json.dumps({"format": FORMAT, **listed}, separators=(",", ":")).encode()
