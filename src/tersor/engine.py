"""A backend with its version, as the core times it."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch
from torch import fx, nn

from tersor import backend as backends
from tersor.backend import BackendName


class BackendEngine:
    """`tersor.compiler.measure.clock.Engine` for a named backend."""

    def __init__(self, name: BackendName) -> None:
        backends.check_backend(name)
        self.name = name

    @property
    def version(self) -> str:
        kernels = "" if self.name == "eager" else _kernels()
        return f"{self.name} {kernels} torch {torch.__version__} on {processor()}"

    def emit(self, module: fx.GraphModule) -> nn.Module:
        return backends.apply(module, self.name)[0]


def _kernels() -> str:
    from tersor.backends.numba.build import kernel_version
    from tersor.backends.numba.features import detect

    return f"{kernel_version()} {detect().name}"


@cache
def processor() -> str:
    """The processor's name and a hash of what it can do."""
    from llvmlite import binding

    features = sorted(name for name, present in binding.get_host_cpu_features().items() if present)
    name = next(filter(None, (_model_name(), platform.processor(), binding.get_host_cpu_name())))
    return f"{name} {hashlib.sha256(' '.join(features).encode()).hexdigest()[:8]}"


def _model_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
