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
from typing import Any

import llvmlite
import numba

from tersor.backends.numba.attentionkernels import AttentionSpec
from tersor.backends.numba.elementwise import Activation, ActivationSpec
from tersor.backends.numba.features import Level
from tersor.backends.numba.layout import Layout
from tersor.backends.numba.microkernels import LinearSpec
from tersor.backends.numba.rowkernels import EmbeddingSpec, NormSpec

ENVIRONMENT = "TERSOR_CACHE_DIR"

_HERE = Path(__file__).parent
_SOURCES = (
    "features",
    "emitter",
    "layout",
    "microkernels",
    "quantiser",
    "elementwise",
    "rowkernels",
    "glue_linear",
    "glue_activation",
    "glue_embedding",
    "glue_norm",
    "attentionkernels",
    "glue_attention",
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


def _module(spec: LinearSpec | ActivationSpec | EmbeddingSpec | NormSpec | AttentionSpec, glue: str) -> ModuleType:
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
def _linear(spec: LinearSpec) -> Any:
    with _lock:
        return _module(spec, "glue_linear").linear


def linear_kernel(level: Level, layout: Layout) -> Any:
    """The compiled `linear` of `glue_linear` for a layout."""
    return _linear(LinearSpec(level.name, layout.width, layout.kind, layout.shifted))


@cache
def _activation(spec: ActivationSpec) -> Any:
    with _lock:
        return _module(spec, "glue_activation").activate


def activation_address(level: Level, activation: Activation) -> int:
    """Address of the compiled activation; 0 for none."""
    return 0 if activation == "none" else int(_activation(ActivationSpec(level.name, activation)).address)


@cache
def embedding_kernel(level: str, width: int) -> Any:
    """The compiled `gather` of `glue_embedding`."""
    with _lock:
        return _module(EmbeddingSpec(level, width), "glue_embedding").gather


@cache
def norm_kernel(level: str) -> Any:
    """The compiled `norm` of `glue_norm`."""
    with _lock:
        return _module(NormSpec(level), "glue_norm").norm


@cache
def attention_kernel(level: str) -> Any:
    """The compiled `attend` of `glue_attention`."""
    with _lock:
        return _module(AttentionSpec(level), "glue_attention").attend
