"""What cannot be read back is not written: saving and loading have one rule for paths and names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tersor.compiler.artifact.graph import checked_name, checked_path, is_name, is_path
from tersor.compiler.artifact.image import Image, image
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.writing import write
from tersor.compiler.capture import capture
from tersor.compiler.errors import ArtifactError, CaptureError, RequestError
from tersor.compiler.rewrite import held_by
from tersor.compiler.slots import parameter_of
from tersor.compiler.stores import Dense

REFUSED = ("a[0]", "it's", "two words", "__x", "(x)", "{x}")
KEPT = ("0", "größe", "a-b", "x_", "_x")


class Heads(nn.Module):
    """A linear layer in a dictionary, under any name, and a parameter that an operator reads directly."""

    def __init__(self, layer: str = "layer", own: str = "own") -> None:
        super().__init__()
        self.heads = nn.ModuleDict({layer: nn.Linear(4, 3)})
        self.names = layer, own
        self.register_parameter(own, nn.Parameter(torch.ones(3)))

    def forward(self, x: Tensor) -> Tensor:
        layer, own = self.names
        return self.heads[layer](x) * getattr(self, own).exp()


def image_of(model: nn.Module) -> Image:
    program = capture(model.eval(), {"x": torch.randn(2, 4)})
    stores = {s.name: Dense(parameter_of(program.module, s)) for s in program.sites}
    return image(program.module, program.signature, held_by(program), stores)


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("argument", ["layer", "own"])
def test_a_path_that_loading_refuses_is_not_saved(name: str, argument: str) -> None:
    with pytest.raises(RequestError) as caught:
        image_of(Heads(**{argument: name}))
    assert f"`{'heads.' if argument == 'layer' else ''}{name}`" in str(caught.value)
    assert "rename" in str(caught.value)


@pytest.mark.parametrize("name", KEPT)
def test_a_path_that_is_saved_loads(name: str, tmp_path: Path) -> None:
    model = Heads(name, f"own{name}")
    write(tmp_path, image_of(model).files)
    loaded, x = load(tmp_path), torch.randn(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(x)[0], model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "in", "a\nb"])
def test_a_path_that_is_no_source_is_refused_by_the_capture(name: str) -> None:
    with pytest.raises(CaptureError, match="rename it"):
        capture(Heads(name), {"x": torch.randn(2, 4)})


@pytest.mark.parametrize("value", ["", ".", "a.", ".a", "a..b", "a b", "a.__b", 'a"', "a]", "a)", None, 3, *REFUSED])
def test_one_rule_for_paths(value: object) -> None:
    assert not is_path(value)
    with pytest.raises(ArtifactError):
        checked_path(value)


@pytest.mark.parametrize("value", ["", "a b", "a=1, b", "lambda", "a.b", "1a", None, 3])
def test_one_rule_for_names(value: object) -> None:
    assert not is_name(value)
    with pytest.raises(ArtifactError):
        checked_name(value)
