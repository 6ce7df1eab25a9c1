"""How, when and where something was made, for whoever wants to make it again."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch

from tersor import __version__
from tersor.compiler.report import Made
from tersor.engine import processor

LIBRARIES = ("torch", "numpy", "scipy", "numba", "transformers", "safetensors")


def made(command: str, data: str) -> Made:
    """This moment on this machine. `command` is what was typed (empty from Python), `data` the source of the text."""
    versions = {"tersor": __version__, "Python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue  # an extra that is not installed
    return Made(
        command=command,
        data=data,
        when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        processor=processor().rpartition(" ")[0],
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
    )
