"""Which peers are installed. One that is not is named as absent, never passed over in silence."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

# The module of a peer, and what it needs. torch is always there.
PEERS = {
    "torch": ("torch",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino", "nncf"),
}
EXTRAS = {"llama_cpp": "tersor[llama]"}
"""What runs only whole decoders of its own, and where it comes from; it is built from source, which takes long."""


@dataclass(frozen=True)
class Present:
    modules: tuple[ModuleType, ...]
    versions: dict[str, str]
    absent: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["peers: " + ", ".join(f"{name} {v}" for name, v in self.versions.items())]
        lines += [
            f"ABSENT, NOT COMPARED: {name} (pip install '{EXTRAS.get(name, 'tersor[peers]')}')" for name in self.absent
        ]
        return "\n".join(lines)


def present() -> Present:
    """Every peer whose packages are all installed. What they tell about their own conversions is silenced."""
    logging.disable(logging.WARNING)
    modules, versions, absent = [], {}, []
    for name, needs in PEERS.items():
        missing = [package for package in needs if find_spec(package) is None]
        absent += missing
        if not missing:
            modules.append(import_module(f"tests.benchmarks.peers.{name}"))
            versions.update({package: version(package) for package in needs})
    for package in EXTRAS:
        if find_spec(package) is None:
            absent.append(package)
        else:
            versions[package] = str(import_module(package).__version__)
    return Present(tuple(modules), versions, tuple(absent))
