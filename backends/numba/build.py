"""Compiled kernels, cached in the process and on disk.

Each specialisation is a copy of a glue file with its SPEC filled in, which Numba compiles. The native objects (see
`objects`) are kept in a folder named by a hash of all sources that shape the code, by the versions of Numba and
llvmlite, and by the processor. Numba is imported where something is to be compiled.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import RLock
from typing import Protocol

from tersor.backends.numba import objects
from tersor.backends.numba.driverspec import DriverSpec
from tersor.backends.numba.elementwise import (
    Activation,
    ActivationSpec,
    Binary,
    BinarySpec,
    CopySpec,
    Unary,
    UnarySpec,
)
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.memorykernels import provide_syscall
from tersor.backends.numba.microkernels import LinearSpec
from tersor.backends.numba.quantiser import QuantiseSpec
from tersor.backends.numba.rounding import RoundSpec
from tersor.backends.numba.rowkernels import NormSpec

ENVIRONMENT = "TERSOR_CACHE_DIR"

_HERE = Path(__file__).parent
_SOURCES = (
    "features",
    "emitter",
    "layout",
    "tiles",
    "microkernels",
    "quantiser",
    "elementwise",
    "rowkernels",
    "glue_quantise",
    "glue_multiply",
    "rounding",
    "fusedspec",
    "glue_multiply_round",
    "glue_round_rows",
    "glue_norm_round",
    "glue_total",
    "densekernels",
    "glue_dense",
    "rows/form",
    "rows/floats",
    "rows/codes",
    "rows/affine",
    "rows/sparse",
    "rows/product",
    "rows/__init__",
    "gatherkernels",
    "glue_gather",
    "sparsekernels",
    "glue_turn",
    "glue_sparse_one",
    "glue_sparse_many",
    "blockkernels",
    "glue_spread",
    "glue_blocks",
    "bankkernels",
    "glue_banks",
    "glue_activation",
    "glue_bags",
    "glue_norm",
    "attentionkernels",
    "attention16",
    "glue_attention16",
    "memorykernels",
    "driverspec",
    "glue_driver",
    "glue_copy",
    "glue_unary",
    "glue_binary",
    "decoderkernels",
    "glue_rotary",
    "glue_append",
    "glue_attend",
    "cells",
    "recurrentoperands",
    "glue_recurrence",
    "objects",
    "build",
)
_lock = RLock()


def cache_root() -> Path:
    """TERSOR_CACHE_DIR, else the user's cache folder (XDG_CACHE_HOME, ~/Library/Caches, %LOCALAPPDATA%)."""
    given = os.environ.get(ENVIRONMENT)
    if given:
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tersor"


@lru_cache(maxsize=1)
def kernel_version() -> str:
    """Hash of everything that shapes the compiled code, apart from the CPU."""
    versions = " ".join(version(name) for name in ("numba", "llvmlite"))
    digest = hashlib.sha256(f"{versions} {sys.version_info[:2]}".encode())
    for source in _SOURCES:
        digest.update((_HERE / f"{source}.py").read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=8)
def _folder(root: Path) -> Path:
    folder = root / "kernels" / f"{kernel_version()}-{objects.digest(objects.processor().encode())[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="tersor-kernels-"))
        warnings.warn(
            f"kernels are compiled anew in every process: {error}; set {ENVIRONMENT} to a writable folder", stacklevel=3
        )
    return folder


class Spec(Protocol):
    """What a copy of a glue file is specialised on; its `repr` is the Python expression that makes it."""

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...


@cache
def functions(spec: Spec, glue: str, names: tuple[str, ...] = ("kernel",)) -> dict[str, int]:
    """Addresses of some functions of a glue file, compiled for `spec`."""
    with _lock:
        source = _source(spec, glue)
        paths = {name: _folder(cache_root()) / f"{spec.name}.{name}.o" for name in names}
        kept = {name: objects.find(path, source) for name, path in paths.items()}
        provide_syscall()
        if not all(kept.values()):
            return _compiled(spec, source, paths)
        return {name: objects.link(*found) for name, found in kept.items() if found}


def _source(spec: Spec, glue: str) -> str:
    """The text of a glue file with its SPEC filled in."""
    lines = (_HERE / f"{glue}.py").read_text().splitlines()
    return "\n".join(f"SPEC = {spec!r}" if line.startswith("SPEC = ") else line for line in lines) + "\n"


def _compiled(spec: Spec, source: str, paths: Mapping[str, Path]) -> dict[str, int]:
    """Compile the functions that `paths` names, and keep their objects there."""
    with tempfile.TemporaryDirectory(prefix="tersor-kernels-") as folder:
        file = Path(folder) / f"{spec.name}.py"
        file.write_text(source)
        name = f"tersor_kernels_{spec.name}"
        found = importlib.util.spec_from_file_location(name, file)
        if found is None or found.loader is None:
            raise ImportError(f"cannot import {file}")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module  # Numba finds a function's globals through it
        found.loader.exec_module(module)
        for function, path in paths.items():
            compiled = getattr(module, function)
            # Numba gives out objects of what it was told to cache; its own cache goes with the folder.
            code, _ = compiled._library.serialize_using_object_code()[2]
            objects.keep(path, compiled.native_name, source, code)
        return {function: int(getattr(module, function).address) for function in paths}


def kernel_address(spec: Spec, glue: str) -> int:
    """Address of the compiled `kernel` of a glue file: void(operands, first, last, work)."""
    return functions(spec, glue)["kernel"]


def quantise_kernel(level: str) -> int:
    return kernel_address(QuantiseSpec(level), "glue_quantise")


def multiply_kernel(level: str, layout: Layout, looked_up: bool = False, resident: bool = False) -> int:
    spec = LinearSpec(level, layout.bits, layout.kind, layout.shifted, looked_up, resident, layout.room)
    return kernel_address(spec, "glue_multiply")


def round_rows_kernel(level: str) -> int:
    return kernel_address(RoundSpec(level), "glue_round_rows")


def activation_kernel(level: str, activation: Activation) -> int:
    """Address of void(y, bytes between rows, rows, 0), in place on a panel; 0 for no activation."""
    return 0 if activation == "none" else kernel_address(ActivationSpec(level, activation), "glue_activation")


def norm_kernel(spec: NormSpec) -> int:
    return kernel_address(spec, "glue_norm")


def copy_kernel(level: str) -> int:
    return kernel_address(CopySpec(level), "glue_copy")


def unary_kernel(level: str, function: Unary) -> int:
    return kernel_address(UnarySpec(level, function), "glue_unary")


def binary_kernel(level: str, function: Binary) -> int:
    return kernel_address(BinarySpec(level, function), "glue_binary")


@dataclass(frozen=True)
class Driver:
    """The compiled `run` and `help_out` of `glue_driver`; Python threads go on while they run."""

    run: Callable[[int, int, int, int], None]
    help_out: Callable[[int, int, int], None]


@cache
def driver(level: str) -> Driver:
    """The driver for a level."""
    found = functions(DriverSpec(level), "glue_driver", ("run", "help_out"))
    whole = ctypes.c_int64
    run = ctypes.CFUNCTYPE(None, whole, whole, whole, whole)(found["run"])
    return Driver(run, ctypes.CFUNCTYPE(None, whole, whole, whole)(found["help_out"]))
