"""Objects on disk: what is not whole, or not of the source at hand, is compiled anew."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from tersor.backends.numba import build, objects
from tersor.backends.numba.elementwise import CopySpec

SPEC, GLUE = CopySpec("generic"), "glue_copy"


@pytest.fixture
def object_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The object of a small kernel in a cache of its own."""
    monkeypatch.setenv(build.ENVIRONMENT, str(tmp_path))
    build.functions.__wrapped__(SPEC, GLUE)
    (path,) = tmp_path.glob("kernels/*/*.o")
    return path


def test_what_is_kept_is_found(object_file: Path) -> None:
    found = objects.find(object_file, build._source(SPEC, GLUE))
    assert found is not None
    assert objects.link(*found) != objects.link(*found)  # linked twice, it is there twice
    assert not list(object_file.parent.glob("*.tmp"))


@pytest.mark.parametrize("harm", ["missing", "empty", "cut", "changed", "another source"])
def test_what_is_damaged_is_compiled_anew(object_file: Path, harm: str) -> None:
    whole = object_file.read_bytes()
    source = build._source(SPEC, GLUE)
    match harm:
        case "missing":
            object_file.unlink()
        case "empty":
            object_file.write_bytes(b"")
        case "cut":
            object_file.write_bytes(whole[:-1])
        case "changed":
            object_file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        case _:
            source += "# changed\n"
    assert objects.find(object_file, source) is None
    address = build.functions.__wrapped__(SPEC, GLUE)["kernel"]
    assert objects.find(object_file, build._source(SPEC, GLUE)) is not None
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(address)(0, 0, 0, 0)  # it can be called


def test_linked_and_compiled_code_do_the_same(object_file: Path) -> None:
    found = objects.find(object_file, build._source(SPEC, GLUE))
    assert found is not None
    object_file.unlink()
    source = np.arange(12, dtype=np.float32).reshape(3, 4)
    for address in (build.functions.__wrapped__(SPEC, GLUE)["kernel"], objects.link(*found)):
        target = np.zeros((4, 3), dtype=np.float32)
        places = [target.ctypes.data, source.ctypes.data, 3, 16, 4, 4, 1, 0, 0]
        operands = np.array(places, dtype=np.int64)
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 4)(address)(operands.ctypes.data, 0, 4, 0)
        assert (target == source.T).all()
