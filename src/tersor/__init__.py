"""Tersor: a declarative graph-rewriting compiler that makes deep-learning models for text smaller and faster.

>>> import tersor
>>> result = tersor.compile(model, "cpu.tersor", example=kwargs, data=batches)  # doctest: +SKIP
>>> result.save("out"); module = tersor.load("out")  # doctest: +SKIP
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent
if not (_HERE / "compiler").is_dir():
    # A checkout without symbolic links: the four links beside this file are small text files, the folders are above.
    if not (_HERE.parents[1] / "compiler" / "__init__.py").is_file():
        raise ImportError(
            "tersor is incomplete: there is no compiler package beside it. Install a wheel, or check the repository "
            "out with symbolic links (`git config core.symlinks true`, then `git checkout -- src/tersor`)"
        )
    __path__.append(str(_HERE.parents[1]))

if TYPE_CHECKING:
    from tersor.api import compile, plan, sites
    from tersor.catalogue import methods
    from tersor.compiler.diagnostics import BudgetError, PolicyError
    from tersor.compiler.errors import ArtifactError, CaptureError, RequestError, TersorError
    from tersor.compiler.plan import Plan
    from tersor.compiler.site import Site
    from tersor.generation import generate
    from tersor.loading import load
    from tersor.policies import Policy
    from tersor.report import Report
    from tersor.result import Result
    from tersor.searching import Found, search

__all__ = [
    "ArtifactError",
    "BudgetError",
    "CaptureError",
    "Found",
    "Plan",
    "Policy",
    "PolicyError",
    "Report",
    "RequestError",
    "Result",
    "Site",
    "TersorError",
    "compile",
    "generate",
    "load",
    "methods",
    "plan",
    "search",
    "sites",
]

# Found on first use: importing torch takes seconds, and `tersor --help` needs none of it.
_WHERE = {
    **dict.fromkeys(("compile", "plan", "sites"), "tersor.api"),
    **dict.fromkeys(("ArtifactError", "CaptureError", "RequestError", "TersorError"), "tersor.compiler.errors"),
    **dict.fromkeys(("BudgetError", "PolicyError"), "tersor.compiler.diagnostics"),
    "Plan": "tersor.compiler.plan",
    "Policy": "tersor.policies",
    "Report": "tersor.report",
    "Result": "tersor.result",
    "generate": "tersor.generation",
    "load": "tersor.loading",
    "Found": "tersor.searching",
    "search": "tersor.searching",
    "Site": "tersor.compiler.site",
    "methods": "tersor.catalogue",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'tersor' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
