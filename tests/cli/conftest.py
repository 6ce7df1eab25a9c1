"""Runs of the command line in this process, in a folder with a module of tiny models and with policies."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tersor.cli import main

MODULE = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(500, 32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, input_ids):
        return self.down(torch.relu(self.up(self.embed(input_ids))))

class Branching(Tiny):
    def forward(self, input_ids):
        return super().forward(input_ids) if input_ids.sum() > 3 else self.embed(input_ids)

def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(), {"input_ids": torch.randint(500, (2, 7))}

def branching():
    return Branching(), model()[1]

def wide():
    return nn.Sequential(nn.Embedding(500, 16)), {"input": torch.ones(2, 7, dtype=torch.long)}

def batches():
    g = torch.Generator().manual_seed(1)
    for _ in range(12):
        yield {"input_ids": torch.randint(500, (4, 9), generator=g)}

def other_batches():
    return [{"input_ids": torch.arange(10).reshape(2, 5)}]

def no_batches():
    return []

def too_large_ids():
    return [{"input_ids": torch.full((2, 5), 500)}]

def wrong_name():
    return [{"tokens": torch.ones(2, 5, dtype=torch.long)}]

def not_a_tensor():
    return [{"input_ids": [1, 2]}]

def failing():
    raise LookupError("no model today")

def wrong():
    return 42
"""

POLICY = "budget size <= 40%\nfor linear or embedding choose uniform(bits = 2..8, group = row) or half()\n"


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Runner:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Ran:
        self.monkeypatch.setattr(sys, "argv", ["tersor", *map(str, arguments)])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = self.capsys.readouterr()
        assert end.value.code == 1 or "Traceback" not in err + out
        assert isinstance(end.value.code, int)
        return Ran(end.value.code, out, err)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workplace: Path) -> Runner:
    monkeypatch.chdir(workplace)
    return Runner(monkeypatch, capsys)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `tiny_models.py` (importable) and `policy.tersor`."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "tiny_models.py").write_text(MODULE, encoding="utf-8")
    (folder / "policy.tersor").write_text(POLICY, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("tiny_models", None)
