"""Which backend computes a compressed graph, and what it claims."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import fx, nn

from tersor.compiler.compressed import StoredWeight
from tersor.compiler.errors import RequestError

BackendName = Literal["auto", "eager", "numba"]


@dataclass(frozen=True)
class Placed:
    """What computes a rewritten module: `kernel` is `eager` or the kernel's name; `reason` says why it is eager."""

    path: str
    kernel: str
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_backend(name: str) -> None:
    if name not in get_args(BackendName):
        raise RequestError(f"there is no backend `{name}`; there are {', '.join(get_args(BackendName))}")


def adds_in_pairs(name: BackendName) -> bool:
    """Whether kernels of a backend add products of bytes in pairs on this CPU, which takes codes whose sums fit 16 bits
    to be fast (`compiler.stores.sums`)."""
    check_backend(name)
    if name == "eager":
        return False
    from tersor.backends.numba.features import detect

    return detect().in_pairs


def apply(module: fx.GraphModule, name: BackendName) -> tuple[nn.Module, tuple[Placed, ...]]:
    """The module for inference on a backend, and what became of every module that holds a store; `auto` takes the CPU
    kernels where they claim something. The module given stays as it is."""
    check_backend(name)
    if name == "eager":
        return module, tuple(Placed(path, "eager", "asked for") for path in stored(module))
    from tersor.backends.numba.backend import NumbaBackend  # numba and its compiler take a second to import

    lowered, rows = NumbaBackend().emit(module)
    placed = tuple(Placed(row.path, row.kernel, row.reason) for row in rows)
    if name == "auto" and all(row.kernel == "eager" for row in placed):
        return module, placed
    return lowered, placed


def stored(module: fx.GraphModule) -> list[str]:
    """Paths of the modules whose weights are stores."""
    paths = dict.fromkeys(str(node.target) for node in module.graph.find_nodes(op="call_module"))
    return [p for p in paths if any(isinstance(part, StoredWeight) for part in module.get_submodule(p).modules())]
