"""Guards the build; everything else is in pyproject.toml.

The four packages are directory links under src/tersor. In a checkout without symbolic links they are small text files,
setuptools finds nothing behind them, and the wheel would be empty without a word.
"""

import sys
from pathlib import Path

from setuptools import setup

PACKAGE = Path(__file__).resolve().parent / "src" / "tersor"
BROKEN = [name for name in ("compiler", "passes", "dsl", "backends") if not (PACKAGE / name / "__init__.py").is_file()]

if BROKEN:
    sys.exit(
        f"tersor: nothing to build behind {', '.join(f'src/tersor/{name}' for name in BROKEN)}: this checkout has no "
        "symbolic links, so the package would be empty.\n"
        "Remedy: `git config core.symlinks true`, then `git checkout -- src/tersor` (on Windows: developer mode)."
    )

setup()
