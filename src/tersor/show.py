"""What an artifact holds, read from the files that loading reads, with the plan beside it where there is one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tersor.compiler.artifact.files import disk_size, named
from tersor.compiler.artifact.load import load
from tersor.compiler.errors import ArtifactError, RequestError
from tersor.compiler.stores import Store
from tersor.result import PLAN
from tersor.saved import saved_plan, saved_search


@dataclass(frozen=True)
class Held:
    """One stored weight. `choice`, `role` and `path` come from the plan (empty without one); `bytes` are its arrays."""

    site: str
    path: str
    role: str
    shape: tuple[int, ...]
    choice: str
    stored: str
    bytes: int


@dataclass(frozen=True)
class Shown:
    """`files` are all files of the folder with their bytes; checksums of those that loading reads were right."""

    folder: str
    bytes: int
    original_bytes: int | None
    files: dict[str, int]
    inputs: tuple[str, ...]
    held: tuple[Held, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checksums": "ok"}


def show(folder: Path) -> Shown:
    """Read an artifact whole. Raises ArtifactError when it is none, damaged, or not what its plan says."""
    loaded = load(folder)
    saved = saved_plan(folder)
    planned = {site.site: site for site in saved[0].sites} if saved else {}
    if saved is not None and set(planned) != set(loaded.stores):
        odd = sorted(set(planned) ^ set(loaded.stores))
        raise ArtifactError(f"{folder}: the plan and the weights disagree about {', '.join(odd[:3])}; write it again")
    held = []
    for name, store in loaded.stores.items():
        p = planned.get(name)
        path, role, choice = (p.path, p.role, p.choice) if p else (name, "", "")
        held.append(Held(name, path, role, tuple(store.shape), choice, store_text(store), store.nbytes()))
    sizes = {entry.name: entry.stat().st_size for entry in sorted(folder.iterdir()) if entry.is_file()}
    first = named(folder)
    files = {n: sizes[n] for n in first} | {n: size for n, size in sizes.items() if n not in first}
    original = saved[0].original_bytes if saved else None
    stale = saved is None and PLAN in sizes
    notes = (f"{PLAN} was not written with this artifact and is not read: compile again",) if stale else ()
    return Shown(str(folder), disk_size(folder), original, files, loaded.signature.names, tuple(held), notes)


def write_page(folder: Path, file: Path) -> None:
    """Write the page of the search that made an artifact. Raises ArtifactError where none did, RequestError where the
    file cannot be written."""
    from tersor.page.render import page  # what draws charts is loaded where some are drawn

    made = page(saved_search(folder))
    try:
        file.write_bytes(made)
    except OSError as problem:
        raise RequestError(f"{file} cannot be written: {problem.strerror or problem}") from None


def store_text(store: Store) -> str:
    """A store as text: `affine(group=64, codes(bits=4), scale=dense(dtype=float16))`."""
    meta = [f"{key}={value}" for key, value in store.meta().items() if isinstance(value, bool | int | float | str)]
    parts = [
        store_text(part) if name == part.kind else f"{name}={store_text(part)}" for name, part in store.parts().items()
    ]
    return f"{store.kind}({', '.join(meta + parts)})"
