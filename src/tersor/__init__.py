"""Tersor: a declarative graph-rewriting compiler that makes deep-learning models for text smaller and faster."""

from pathlib import Path

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
