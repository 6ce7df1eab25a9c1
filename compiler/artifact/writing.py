"""An artifact is written all at once or not at all: whenever the writer is killed, the folder holds the artifact it
held before or the new one.

Everything is first written and checked in a folder of its own inside. The data files, whose names no other artifact
uses, then move to their places; the manifest, which names them, is replaced last, in one step. Only then do the
documents beside the artifact and the removal of the old data follow.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tersor.compiler.artifact.files import documents
from tersor.compiler.artifact.names import BESIDE, MANIFEST, STAGING, beside_of, is_data
from tersor.compiler.errors import ArtifactError, RequestError


def write(
    folder: Path,
    files: Mapping[str, bytes],
    extra: Mapping[str, bytes] = {},
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write the files of an artifact into `folder`, and `extra` documents beside them.

    `check` is called with a folder that holds the files before they take the place of what is there, unless the same
    are there: where it raises, nothing has changed. Other files in the folder stay as they are. RequestError where the
    folder cannot be written.
    """
    committed = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as handle, _staging(folder) as staging:
            there = _holds(folder, files)
            new = {MANIFEST: files[MANIFEST]} if there else files
            for name, data in {**extra, **new}.items():
                _write(staging / name, data)
            if check is not None and not there:
                check(staging)
            _commit(staging, folder, new, handle)
            committed = True
            os.fsync(handle)
            _follow(staging, folder, files, extra)
    except OSError as problem:
        why = problem.strerror or problem
        if committed:
            raise RequestError(f"the artifact in {folder} is new, but not all that lies beside it: {why}") from None
        size = sum(map(len, (*files.values(), *extra.values())))
        raise RequestError(
            f"cannot write the artifact to {folder}: {why}; it needs {size} bytes besides what is there, which is as "
            f"it was"
        ) from None


@contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Keep other writers out, until this one ends in any way; gives a handle of the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"another process is writing to {folder}: wait for it, or name another folder") from None
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    for left in folder.glob(STAGING + "*"):  # by a writer that was killed
        shutil.rmtree(left)
    staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=folder))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether the files are in a folder, byte by byte."""
    try:
        return all((folder / name).read_bytes() == data for name, data in files.items())
    except OSError:
        return False


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _commit(staging: Path, folder: Path, files: Mapping[str, bytes], handle: int) -> None:
    """Move the data, then the manifest. The folder is flushed in between, so that a power cut keeps that order."""
    data = [name for name in files if name != MANIFEST]
    fresh = [name for name in data if not (folder / name).exists()]
    try:
        for name in data:
            os.replace(staging / name, folder / name)
        os.fsync(handle)
        os.replace(staging / MANIFEST, folder / MANIFEST)
    except OSError:
        for name in fresh:
            with suppress(OSError):  # the next writer removes it
                (folder / name).unlink()
        raise


def _follow(staging: Path, folder: Path, files: Mapping[str, bytes], extra: Mapping[str, bytes]) -> None:
    """Move the documents and remove what the old artifact left. Meanwhile the documents are nobody's: they may be of
    both."""
    try:
        old = documents(folder)[1]
    except ArtifactError:
        old = ()  # of a damaged list nothing is surely ours
    if old or extra:
        _vouch(staging, folder, beside_of(b"", {*old, *extra}))
    for name in extra:
        os.replace(staging / name, folder / name)
    data = [entry.name for entry in folder.iterdir() if is_data(entry.name)]
    for name in (*old, *data):
        if name not in files and name not in extra:
            (folder / name).unlink(missing_ok=True)
    if extra:
        _vouch(staging, folder, beside_of(files[MANIFEST], extra))
    else:
        (folder / BESIDE).unlink(missing_ok=True)


def _vouch(staging: Path, folder: Path, data: bytes) -> None:
    _write(staging / BESIDE, data)
    os.replace(staging / BESIDE, folder / BESIDE)
