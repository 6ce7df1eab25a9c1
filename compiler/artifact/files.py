"""An artifact on disk: written all at once or not at all, and not believed when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersor.compiler.artifact.image import FORMAT, GRAPH, MANIFEST, WEIGHTS, Image
from tersor.compiler.errors import ArtifactError, RequestError

MAX_JSON = 256 * 2**20


def write(folder: Path, files: Image, extra: Mapping[str, bytes] = {}) -> None:
    """Write the files into `folder`: all of them beside it first, then by renaming. What says how the artifact was made
    (`extra`) goes last, so that it never stands beside the arrays of an older one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    except OSError as problem:
        raise RequestError(f"cannot write to {folder}: {problem.strerror or problem}") from None
    try:
        for name, data in {**extra, **files}.items():
            with (staging / name).open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
        # Between these renames the old manifest does not fit the new files: loading says so rather than mix the two.
        for name in (GRAPH, WEIGHTS, MANIFEST, *extra):
            os.replace(staging / name, folder / name)
    except OSError as problem:
        raise RequestError(f"cannot write the artifact to {folder}: {problem.strerror or problem}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def disown(folder: Path) -> None:
    """Make a folder no artifact: what was written there turned out to be wrong."""
    (folder / MANIFEST).unlink(missing_ok=True)


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path} is not valid JSON: the artifact is damaged; write it again") from None


def read(folder: Path) -> tuple[Any, bytes]:
    """The graph description and the bytes of the weights, after checking format, sizes and checksums."""
    manifest_path = folder / MANIFEST
    if not folder.is_dir() or not manifest_path.is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}")
    manifest = _json(_bytes(manifest_path, MAX_JSON), manifest_path)
    if not isinstance(manifest, dict) or type(manifest.get("format")) is not int:
        raise ArtifactError(f"{manifest_path} does not describe an artifact")
    if manifest["format"] > FORMAT:
        raise ArtifactError(
            f"{folder} is written in format {manifest['format']}, newer than format {FORMAT}, which this version "
            f"reads: update tersor"
        )
    contents: dict[str, bytes] = {}
    listed = manifest.get("files")
    for name in (GRAPH, WEIGHTS):
        expected = listed.get(name) if isinstance(listed, dict) else None
        if not isinstance(expected, dict):
            raise ArtifactError(f"{manifest_path} does not list {name}: the artifact is damaged; write it again")
        data = _bytes(folder / name, None)
        if len(data) != expected.get("bytes"):
            raise ArtifactError(
                f"{folder / name} has {len(data)} bytes instead of {expected.get('bytes')}: truncated or mixed up; "
                f"copy it again"
            )
        if hashlib.sha256(data).hexdigest() != expected.get("sha256"):
            raise ArtifactError(f"{folder / name} does not have its checksum: it was changed or damaged; copy it again")
        contents[name] = data
    return _json(contents[GRAPH], folder / GRAPH), contents[WEIGHTS]


def _bytes(path: Path, most: int | None) -> bytes:
    try:
        if most is not None and path.stat().st_size > most:
            raise ArtifactError(f"{path} is too large to be what it should be")
        return path.read_bytes()
    except OSError as problem:
        raise ArtifactError(f"cannot read {path}: {problem.strerror or problem}") from None


def disk_size(folder: Path) -> int:
    """Bytes of the files that loading reads."""
    return sum((folder / name).stat().st_size for name in (MANIFEST, GRAPH, WEIGHTS))
