"""Compiled kernels, cached in the process and on disk.

Numba keeps compiled code next to the file a function is written in, and looks at that file only: it sees neither the
emitter nor the values a function closes over. So each specialisation gets a file of its own, a copy of a glue file
with its SPEC filled in, in a folder named by a hash of all sources that shape the code, and by the versions of Numba
and llvmlite. Numba itself keys on the CPU.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import warnings
from functools import cache, lru_cache
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Protocol

import llvmlite
import numba

from tersor.backends.numba.attentionkernels import AttentionSpec
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
    "glue_attention",
    "attention16",
    "glue_attention16",
    "memorykernels",
    "driverspec",
    "glue_driver",
    "glue_copy",
    "glue_unary",
    "glue_binary",
    "decoderkernels",
    "glue_rootnorm",
    "glue_rotary",
    "glue_append",
    "glue_attend",
    "cells",
    "recurrentoperands",
    "glue_recurrence",
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
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version_info[:2]}".encode())
    for source in _SOURCES:
        digest.update((_HERE / f"{source}.py").read_bytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=8)
def _folder(root: Path) -> Path:
    folder = root / "kernels" / kernel_version()
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


def _module(spec: Spec, glue: str) -> ModuleType:
    """The module compiled for `spec`: written if it is not there as it should be, then imported."""
    source = (_HERE / f"{glue}.py").read_text()
    lines = [f"SPEC = {spec!r}" if line.startswith("SPEC = ") else line for line in source.splitlines()]
    text = "\n".join(lines) + "\n"
    path = _folder(cache_root()) / f"{spec.name}.py"
    if not path.exists() or path.read_text() != text:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        os.replace(file.name, path)
    name = f"tersor_kernels_{spec.name}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"cannot import {path}")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # Numba finds a function's globals through it
    found.loader.exec_module(module)
    return module


@cache
def kernel_address(spec: Spec, glue: str) -> int:
    """Address of the compiled `kernel` of a glue file: void(operands, first, last, work)."""
    with _lock:
        return int(_module(spec, glue).kernel.address)


def quantise_kernel(level: str) -> int:
    return kernel_address(QuantiseSpec(level), "glue_quantise")


def multiply_kernel(level: str, layout: Layout, looked_up: bool = False) -> int:
    return kernel_address(LinearSpec(level, layout.width, layout.kind, layout.shifted, looked_up), "glue_multiply")


def round_rows_kernel(level: str) -> int:
    return kernel_address(RoundSpec(level), "glue_round_rows")


def activation_kernel(level: str, activation: Activation) -> int:
    """Address of void(y, bytes between rows, rows, 0), in place on a panel; 0 for no activation."""
    return 0 if activation == "none" else kernel_address(ActivationSpec(level, activation), "glue_activation")


def norm_kernel(level: str) -> int:
    return kernel_address(NormSpec(level), "glue_norm")


def attention_kernel(level: str) -> int:
    return kernel_address(AttentionSpec(level), "glue_attention")


def copy_kernel(level: str) -> int:
    return kernel_address(CopySpec(level), "glue_copy")


def unary_kernel(level: str, function: Unary) -> int:
    return kernel_address(UnarySpec(level, function), "glue_unary")


def binary_kernel(level: str, function: Binary) -> int:
    return kernel_address(BinarySpec(level, function), "glue_binary")


@cache
def driver(level: str) -> ModuleType:
    """The compiled `run` and `help_out` of `glue_driver`."""
    with _lock:
        return _module(DriverSpec(level), "glue_driver")
