"""What is installed is what is in the repository, and what cannot be built whole is not built at all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("compiler", "passes", "dsl", "backends")
BUILD_INPUTS = ("pyproject.toml", "setup.py", "LICENSE", "README.md", *LAYERS)


def checkout(to: Path, *, links: bool) -> Path:
    """A copy of what the build reads; without links they are the small text files that git writes in their place."""
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    to.mkdir()
    for name in BUILD_INPUTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, to / name, ignore=junk)
        elif (ROOT / name).is_file():
            shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / "src", to / "src", symlinks=True, ignore=junk)
    if not links:
        for layer in LAYERS:
            link = to / "src" / "tersor" / layer
            target = os.readlink(link)
            link.unlink()
            link.write_text(target, encoding="utf-8")
    return to


def python(
    *arguments: str, cwd: Path, path: Path | None = None, program: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """A run of this Python (or `program`) that sees `path` and no other checkout."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [str(program or sys.executable), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module", params=["sdist then wheel", "wheel"])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout; `build` without options goes through the sdist."""
    folder = tmp_path_factory.mktemp("build")
    source = checkout(folder / "source", links=True)
    only = ["--wheel"] if request.param == "wheel" else []
    done = python("-m", "build", *only, "--outdir", str(folder / "dist"), str(source), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_four_packages(wheel: Path) -> None:
    ours = {
        f"tersor/{path.relative_to(ROOT).as_posix()}"
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".md", ".pyc", ".nbi", ".nbc")
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    assert len(ours) > len(LAYERS)
    assert sorted(ours - held) == []
    page = {f"tersor/page/{path.name}" for path in (ROOT / "src" / "tersor" / "page").glob("*.*")}
    assert {"tersor/__init__.py", "tersor/py.typed", "tersor/page/page.html", "tersor/page/page.css"} <= held
    assert page <= held
    assert {name.split("/")[0] for name in held if not name.split("/")[0].endswith(".dist-info")} == {"tersor"}


@pytest.mark.slow
def test_the_wheel_runs_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are borrowed from this environment by a .pth file; tersor itself must come from the wheel."""
    venv.create(tmp_path / "fresh", with_pip=True)
    fresh = tmp_path / "fresh" / "bin" / "python"
    done = python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel), cwd=tmp_path, program=fresh)
    assert done.returncode == 0, done.stderr
    asked = python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path, program=fresh)
    site = Path(asked.stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    empty = tmp_path / "empty"
    empty.mkdir()
    where = python("-c", "import tersor; print(tersor.__file__)", cwd=empty, program=fresh)
    assert where.stdout.strip() == str(site / "tersor" / "__init__.py"), where.stderr
    methods = python("-m", "tersor", "methods", cwd=empty, program=fresh)
    assert methods.returncode == 0, methods.stderr
    assert "uniform" in methods.stdout
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_a_checkout_without_links_is_not_built(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source", links=False)
    done = python("-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(source), cwd=tmp_path)
    assert done.returncode != 0
    assert "nothing to build behind src/tersor/compiler" in done.stdout + done.stderr
    assert "core.symlinks" in done.stdout + done.stderr
    assert not list(tmp_path.glob("dist/*.whl"))


IMPORT = "import tersor, tersor.compiler.errors as errors; print(errors.__name__, errors.__file__)"


def test_a_checkout_without_links_still_imports(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source", links=False)
    done = python("-c", IMPORT, cwd=tmp_path, path=source / "src")
    assert done.stdout.split() == ["tersor.compiler.errors", str(source / "compiler" / "errors.py")], done.stderr


def test_a_package_without_its_parts_says_so(tmp_path: Path) -> None:
    source = checkout(tmp_path / "source", links=False)
    shutil.rmtree(source / "compiler")
    done = python("-c", IMPORT, cwd=tmp_path, path=source / "src")
    assert done.returncode != 0
    assert "tersor is incomplete" in done.stderr
    assert "core.symlinks" in done.stderr
