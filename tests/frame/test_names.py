"""Every module has one name: importing all of tersor leaves none of the bare folder names in `sys.modules`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Run from the repository root, where `import compiler` would work if anything tried it. `__main__` runs on import.
IMPORT_ALL = """
import importlib, pkgutil, sys
import tersor

count = 0
for module in pkgutil.walk_packages(tersor.__path__, "tersor."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        count += 1
print(count, *sorted({name.split(".")[0] for name in sys.modules} & {"compiler", "passes", "dsl", "backends"}))
"""


def test_every_module_imports_under_its_one_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = ['src', '']\n{IMPORT_ALL}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, *bare = done.stdout.split()
    assert int(count) > 4
    assert not bare, f"imported by their bare names: {bare}"
