"""`tersor.load`, which imports nothing that only compiling needs: a process is ready sooner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from tersor import backend as backends
from tersor.backend import BackendName
from tersor.compiler.artifact.load import load as load_artifact
from tersor.compiler.callable import CompiledModule


@torch.inference_mode(False)
def load(
    folder: str | Path, backend: BackendName = "auto", *, opaque: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """The model of an artifact in eval mode, called as the original was.

    `eager` is plain torch and trainable, `numba` the CPU kernels; `auto` takes kernels where there are any. `opaque`
    are modules, by path, for leaves that were kept as they are: the artifact has their arrays, not their code. Raises
    ArtifactError for a folder that is none, or damaged.
    """
    backends.check_backend(backend)
    loaded = load_artifact(Path(folder), opaque or {})
    graph, _ = backends.apply(loaded.module, backend)
    return CompiledModule(graph, loaded.signature).eval()
