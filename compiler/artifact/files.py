"""The files of an artifact as read from disk: nothing in them is believed before its checksum was seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersor.compiler.artifact.names import BESIDE, FORMAT, GRAPH, MANIFEST, WEIGHTS, is_data
from tersor.compiler.errors import ArtifactError

MAX_JSON = 256 * 2**20


def read(folder: Path) -> tuple[Any, bytes]:
    """The graph description and the bytes of the weights, after checking format, sizes and checksums.

    Also while the artifact is being replaced: then it is the old one or the new one.
    """
    while True:
        version, manifest = _version(folder), _manifest_bytes(folder)
        try:
            listed = _listed(folder, manifest)
            graph, weights = (_checked(folder, listed[part]) for part in (GRAPH, WEIGHTS))
        except ArtifactError:
            if version == _version(folder):
                raise
        else:
            return _json(graph, folder / listed[GRAPH]["file"]), weights


def named(folder: Path) -> tuple[str, ...]:
    """The files that loading reads: the manifest and what it names. Raises ArtifactError."""
    listed = _listed(folder, _manifest_bytes(folder))
    return MANIFEST, listed[GRAPH]["file"], listed[WEIGHTS]["file"]


def disk_size(folder: Path) -> int:
    """Bytes of the files that loading reads."""
    return sum((folder / name).stat().st_size for name in named(folder))


def beside(folder: Path) -> tuple[str, ...]:
    """The documents written with the artifact that the folder holds; none when they came with another one, as after a
    writer was killed. Raises ArtifactError."""
    artifact, names = documents(folder)
    return names if names and artifact == hashlib.sha256(_manifest_bytes(folder)).hexdigest() else ()


def documents(folder: Path) -> tuple[str, tuple[str, ...]]:
    """The artifact that documents were last written for, as the SHA-256 of its manifest, and their names."""
    path = folder / BESIDE
    if not path.is_file():
        return "", ()
    found = _json(_bytes(path, MAX_JSON), path)
    names = found.get("files") if isinstance(found, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) and n == Path(n).name for n in names):
        raise ArtifactError(f"{path} does not name documents: it is damaged; write the artifact again")
    return str(found.get("artifact")), tuple(names)


def _version(folder: Path) -> tuple[int, int] | None:
    """Which file the manifest is: another one after every replacement, even by an artifact that was there before."""
    try:
        found = (folder / MANIFEST).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _manifest_bytes(folder: Path) -> bytes:
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}")
    return _bytes(path, MAX_JSON)


def _listed(folder: Path, data: bytes) -> dict[str, Mapping[str, Any]]:
    """What the manifest says of each part: `file`, `bytes`, `sha256`."""
    path = folder / MANIFEST
    manifest = _json(data, path)
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise ArtifactError(f"{path} does not describe an artifact")
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"{folder} is written in format {manifest['format']}, newer than format {FORMAT}, which this version "
            f"reads: update tersor"
        )
    if manifest["format"] < FORMAT:
        raise ArtifactError(
            f"{folder} is written in format {manifest['format']}, older than format {FORMAT}, which this version "
            f"reads: compile the model again"
        )
    for part in (GRAPH, WEIGHTS):
        entry = manifest.get(part)
        name = entry.get("file") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_data(name, part):
            raise ArtifactError(f"{path} does not name its {part}: the artifact is damaged; write it again")
    return manifest


def _checked(folder: Path, expected: Mapping[str, Any]) -> bytes:
    path = folder / expected["file"]
    data = _bytes(path, None)
    if len(data) != expected.get("bytes"):
        raise ArtifactError(
            f"{path} has {len(data)} bytes instead of {expected.get('bytes')}: truncated or mixed up; copy it again"
        )
    if hashlib.sha256(data).hexdigest() != expected.get("sha256"):
        raise ArtifactError(f"{path} does not have its checksum: it was changed or damaged; copy it again")
    return data


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path} is not valid JSON: the artifact is damaged; write it again") from None


def _bytes(path: Path, most: int | None) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise ArtifactError(f"{path} is too large to be what it should be")
        return path.read_bytes()
    except OSError as problem:
        raise ArtifactError(f"cannot read {path}: {problem.strerror or problem}") from None
