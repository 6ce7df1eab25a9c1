"""Whenever writing is stopped, by an error or a kill, the folder holds the old artifact or the new one, whole."""

from __future__ import annotations

import errno
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.artifact.test_round_trip import image_of

from tersor.compiler.artifact.files import beside, read
from tersor.compiler.artifact.image import Image, compact
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.names import BESIDE, STAGING, files_of
from tersor.compiler.artifact.writing import write
from tersor.compiler.errors import ArtifactError, RequestError

OLD_DOCUMENTS, NEW_DOCUMENTS = {"plan.json": b"old", "tokens": b"x"}, {"plan.json": b"new", "report": b"y"}
FOREIGN = {"thesis.txt": b"years of work", "graph.json": b"{}", "weights-1.safetensors": b"mine"}
STEPS = ("replace", "fsync", "unlink", "mkdir", "rmdir", "open")

WRITER = """
import sys
from pathlib import Path
from tersor.compiler.artifact.names import files_of
from tersor.compiler.artifact.writing import write
assert "torch" not in sys.modules
folder, *sources = map(Path, sys.argv[1:])
contents = [(s.with_suffix(".graph").read_bytes(), s.with_suffix(".weights").read_bytes()) for s in sources]
print("ready", flush=True)
while True:
    for graph, weights in contents:
        write(folder, files_of(graph, weights), {"plan.json": graph})
"""


class Killed(BaseException):
    """Ends the writer; nothing on the way may do anything more."""


@pytest.fixture(scope="module")
def images() -> tuple[Image, Image]:
    return image_of("lstm_lm", "uniform"), image_of("lstm_lm", "prune")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def held(folder: Path, images: tuple[Image, Image]) -> str:
    """Which artifact a folder holds, whole."""
    graph, weights = read(folder)
    for name, image in zip(("old", "new"), images, strict=True):
        if (compact(graph), weights) == (image.graph, image.weights):
            return name
    raise AssertionError("the folder holds a mixture")


@contextmanager
def failing_at(step: int, raised: Callable[[], BaseException], ever_after: bool) -> Iterator[list[str]]:
    """The `step`-th operation on files fails instead of being done, and `ever_after` all that follow too."""
    done: list[str] = []

    def failing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            if len(done) == step or (ever_after and len(done) > step):
                raise raised()
            return original(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in STEPS:
            patch.setattr(os, name, failing(name, getattr(os, name)))
        yield done


def disk_full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def prepared(folder: Path, images: tuple[Image, Image]) -> None:
    folder.mkdir()
    for name, data in FOREIGN.items():
        (folder / name).write_bytes(data)
    write(folder, images[0].files, OLD_DOCUMENTS)


@pytest.mark.parametrize("way", ["error", "kill"])
def test_stopped_at_every_step(images: tuple[Image, Image], way: str, tmp_path: Path) -> None:
    seen: list[str] = []
    for step in range(1, 200):
        folder = tmp_path / str(step)
        prepared(folder, images)
        before = contents(folder)
        ended: BaseException | None = None
        with failing_at(step, disk_full if way == "error" else Killed, ever_after=way == "kill") as done:
            try:
                write(folder, images[1].files, NEW_DOCUMENTS)
            except (RequestError, Killed) as stop:
                ended = stop
        found = held(folder, images)
        if ended is not None or len(done) < step:  # else an error that does not matter, such as `the folder exists`
            seen.append(found)
        now = contents(folder)
        assert {name: now[name] for name in FOREIGN} == FOREIGN
        if way == "error" and ended is not None:
            assert "No space left on device" in str(ended)
            assert ("is as it was" in str(ended)) == (found == "old")
            if found == "old":
                assert now == before
        documents = {name: now[name] for name in beside(folder)}
        assert documents in ({}, OLD_DOCUMENTS if found == "old" else NEW_DOCUMENTS)
        write(folder, images[1].files, NEW_DOCUMENTS)
        assert contents(folder).keys() == {*images[1].files, *NEW_DOCUMENTS, BESIDE, *FOREIGN}
        assert not [p for p in folder.iterdir() if p.is_dir()]
        if len(done) < step:
            break
    assert ended is None
    assert len(seen) > 15
    assert seen == sorted(seen, reverse=True)  # old until one step, new ever after
    assert set(seen) == {"old", "new"}


def test_stopped_before_there_was_an_artifact(images: tuple[Image, Image], tmp_path: Path) -> None:
    """Nothing, then the new one; and what is left behind is no obstacle."""
    whole = 0
    for step in range(1, 200):
        folder = tmp_path / str(step)
        with failing_at(step, Killed, ever_after=True) as done:
            with suppress(Killed):
                write(folder, images[1].files)
        try:
            whole += held(folder, images) == "new"
        except ArtifactError as problem:
            assert "is not an artifact" in str(problem)
            assert whole == 0
        write(folder, images[1].files)
        assert contents(folder) == images[1].files
        if len(done) < step:
            break
    assert whole > 0


def test_a_disk_that_takes_no_more(images: tuple[Image, Image], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepared(folder, images)
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(images[1].weights) - 1, limits[1]))
    try:
        with pytest.raises(RequestError, match=r"cannot write the artifact .* it needs .* bytes"):
            write(folder, images[1].files, NEW_DOCUMENTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before
    assert not list(folder.glob(STAGING + "*"))


def test_what_does_not_pass_its_check_changes_nothing(images: tuple[Image, Image], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    prepared(folder, images)
    before = contents(folder)

    def check(staged: Path) -> None:
        assert load(staged).module is not None
        raise ValueError("it computes something else")

    with pytest.raises(ValueError, match="something else"):
        write(folder, images[1].files, NEW_DOCUMENTS, check)
    assert contents(folder) == before


def test_one_writer_at_a_time(images: tuple[Image, Image], tmp_path: Path) -> None:
    def check(_: Path) -> None:
        with pytest.raises(RequestError, match="another process is writing"):
            write(tmp_path, images[0].files)

    write(tmp_path, images[1].files, {}, check)
    assert held(tmp_path, images) == "new"


@pytest.mark.parametrize("back", [False, True])
def test_replaced_while_it_is_read(
    back: bool, images: tuple[Image, Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has seen the old manifest does not find its data, and reads what is there then: the new artifact,
    or the old one, put back so that the manifest is the same as before."""
    write(tmp_path, images[0].files)
    original, paths = Path.read_bytes, []

    def read_bytes(path: Path) -> bytes:
        paths.append(path)
        if len(paths) != 2:
            return original(path)
        write(tmp_path, images[1].files)
        try:
            return original(path)
        finally:
            if back:
                write(tmp_path, images[0].files)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert held(tmp_path, images) == ("old" if back else "new")
    assert len(paths) > 4


def test_killed_at_any_moment(images: tuple[Image, Image], tmp_path: Path) -> None:
    """A process that does nothing but save is killed again and again; meanwhile every reader is served."""
    folder, chance, seen = tmp_path / "out", random.Random(0), set()
    made = Image(images[0].graph, images[0].weights + bytes(200_000)), images[1]
    sources = [tmp_path / "old", tmp_path / "new"]
    for source, image in zip(sources, made, strict=True):
        source.with_suffix(".graph").write_bytes(image.graph)
        source.with_suffix(".weights").write_bytes(image.weights)
    cycle, kills, ends = max(swapped(folder, made) for _ in range(3)), 0, time.monotonic() + 120
    while kills < 30 or (seen != {"old", "new"} and time.monotonic() < ends):
        kills += 1
        writer = subprocess.Popen([sys.executable, "-c", WRITER, folder, *sources], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        with writer.stdout:
            assert writer.stdout.readline() == "ready\n"
            # Where the machine is busy, saving takes longer than it did here: later kills come later.
            until = time.monotonic() + chance.uniform(0, cycle * (1 + kills / 5))
            while time.monotonic() < until:
                seen.add(held(folder, made))
            writer.kill()
            writer.wait()
        seen.add(held(folder, made))
        assert set(beside(folder)) <= {"plan.json"}
        if beside(folder):
            assert (folder / "plan.json").read_bytes() == made[held(folder, made) == "new"].graph
    assert seen == {"old", "new"}


def swapped(folder: Path, images: tuple[Image, Image]) -> float:
    """Seconds to write both artifacts in turn: how long that takes is the disk's affair."""
    began = time.monotonic()
    for image in reversed(images):
        write(folder, files_of(image.graph, image.weights), {"plan.json": image.graph})
    return time.monotonic() - began
