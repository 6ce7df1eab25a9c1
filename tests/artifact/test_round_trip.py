"""Saved and loaded, a model is the same to the bit, in what it computes and in what it holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests.artifact.compressed_zoo import EVERY_CASE, RECIPES, rewritten, stores_of
from tests.captured import captured
from tests.inputs import inputs_like, leaves

from tersor.compiler.artifact.files import disk_size
from tersor.compiler.artifact.image import Image, image, size_of
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.names import BESIDE, MANIFEST, WEIGHTS, is_data
from tersor.compiler.artifact.writing import write
from tersor.compiler.callable import CompiledModule
from tersor.compiler.errors import RequestError
from tersor.compiler.install import installed
from tersor.compiler.rewrite import held_by, rewrite


def image_of(name: str, recipe: str) -> Image:
    program = captured(name)[2]
    return image(program.module, program.signature, held_by(program), stores_of(name, recipe))


@pytest.mark.parametrize(("name", "recipe"), EVERY_CASE)
def test_loaded_equals_rewritten(name: str, recipe: str, tmp_path: Path) -> None:
    _, example, program = captured(name)
    files = image_of(name, recipe)
    write(tmp_path, files.files)
    assert disk_size(tmp_path) == size_of(files) == sum(f.stat().st_size for f in tmp_path.iterdir())
    loaded = load(tmp_path)
    assert not loaded.module.training
    ours, again = rewritten(name, recipe), loaded.module
    first = CompiledModule(ours, program.signature)
    second = CompiledModule(again, loaded.signature)
    with torch.no_grad():
        for shape in ((2, 12), (1, 1)):
            inputs = inputs_like(example, *shape)
            a, b = first(**inputs), second(**inputs)
            assert type(a) is type(b)
            assert all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))
    stores = stores_of(name, recipe)
    assert set(loaded.stores) == set(stores)
    for site, store in stores.items():
        assert torch.equal(loaded.stores[site].dense(), store.dense().detach())
        assert loaded.stores[site].spec() == store.spec()
    assert {n: tuple(p.shape) for n, p in ours.named_parameters()} == {
        n: tuple(p.shape) for n, p in again.named_parameters()
    }
    saved_again = image(again, loaded.signature, loaded.held, loaded.stores)
    assert saved_again.weights == files.weights
    assert json.loads(saved_again.graph) == json.loads(files.graph)


@pytest.mark.parametrize("name", ["bert", "t5", "lstm_tied"])
def test_the_weights_on_disk_are_the_stores_and_little_else(name: str) -> None:
    """A tied weight is written once."""
    files, stores = image_of(name, "uniform"), stores_of(name, "uniform")
    arrays = safetensors.torch.load(files.weights)
    named = {k: a for k, a in arrays.items() if not k.startswith("buffer:")}
    assert sum(a.numel() * a.element_size() for a in named.values()) == sum(s.nbytes() for s in stores.values())
    assert len(files.weights) > sum(s.nbytes() for s in stores.values())


@pytest.mark.parametrize("name", ["bert", "lstm_lm", "torch_encoder"])
def test_an_image_of_the_rewritten_module_is_the_image_of_the_program(name: str) -> None:
    program, stores = captured(name)[2], stores_of(name, "uniform")
    after = image(rewritten(name, "uniform"), program.signature, held_by(program), stores)
    assert after == image_of(name, "uniform")


@pytest.mark.parametrize("name", ["bert", "gpt2", "lstm_tied", "gru_lm"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_trained_then_saved_then_loaded(name: str, recipe: str, tmp_path: Path) -> None:
    """After a step of the optimiser what is saved is the module with its arrays rounded to the disk form."""
    _, example, program = captured(name)
    held, template = held_by(program), stores_of(name, recipe)
    module = rewritten(name, recipe).train()
    run, inputs = CompiledModule(module, program.signature), inputs_like(example, 3, 9)
    before = {n: s.dense() for n, s in installed(module, held, template).items()}
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    sum(x.square().mean() for x in leaves(run(**inputs)) if x.dtype.is_floating_point).backward()
    optimiser.step()
    trained = installed(module, held, template)
    assert any(not torch.equal(trained[n].dense(), before[n]) for n in before)
    write(tmp_path, image(module, program.signature, held, trained).files)
    loaded = load(tmp_path)
    for site, store in trained.items():
        assert torch.equal(loaded.stores[site].dense(), store.dense().detach())
    expected = CompiledModule(rewrite(program, trained, {})[0].eval(), program.signature)
    with torch.no_grad():
        found = CompiledModule(loaded.module, loaded.signature)(**inputs)
        for a, b in zip(leaves(expected(**inputs)), leaves(found), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["bert"])
def test_writing_over_an_artifact_replaces_it(name: str, tmp_path: Path) -> None:
    write(tmp_path, image_of(name, "uniform").files)
    write(tmp_path, image_of("lstm_lm", "kmeans").files, {"report.md": b"# report"})
    assert set(load(tmp_path).stores) == set(stores_of("lstm_lm", "kmeans"))
    names = {*image_of("lstm_lm", "kmeans").files, "report.md", BESIDE}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_writing_where_a_file_stands(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    for place in ("taken", "taken/below"):
        with pytest.raises(RequestError, match="cannot write"):
            write(tmp_path / place, image_of("lstm_lm", "uniform").files)
    assert (tmp_path / "taken").read_text() == "x"


def test_writing_where_a_folder_stands_in_the_way_of_a_file(tmp_path: Path) -> None:
    files = image_of("lstm_lm", "uniform").files
    (weights,) = (name for name in files if is_data(name, WEIGHTS))
    (tmp_path / weights).mkdir()
    with pytest.raises(RequestError, match="cannot write"):
        write(tmp_path, files)
    assert not (tmp_path / MANIFEST).exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing")]


def test_writing_where_nothing_may_be_written() -> None:
    with pytest.raises(RequestError, match="cannot write"):
        write(Path("/proc/none/here"), image_of("lstm_lm", "uniform").files)
