"""The Python interface on a tiny model, with the model itself as the oracle."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tersor
from tersor.compiler.policy import Budget, OfKind, One, Option, Or, Range, Rule, Use

ROWS, WIDTH = 500, 32


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.down(torch.relu(self.up(self.embed(input_ids))))


def ids(seed: int, batch: int = 3, tokens: int = 7) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(ROWS, (batch, tokens), generator=torch.Generator().manual_seed(seed))}


def batches(count: int = 12) -> Iterator[dict[str, Tensor]]:
    return (ids(seed) for seed in range(count))


POLICY = tersor.Policy.parse(
    "budget size <= 40%\nfor linear or embedding choose uniform(bits = 2..8, group = row) or half()\n"
)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().train()


@pytest.fixture(scope="module")
def result(model: nn.Module) -> tersor.Result:
    return tersor.compile(model, POLICY, ids(0), batches())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(ROWS, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lstm(self.embed(input_ids))[0]


def test_it_compiles_in_inference_mode() -> None:
    torch.manual_seed(0)
    model = Recurrent().eval()
    with torch.inference_mode():
        made = tersor.compile(model, tersor.Policy.parse("for recurrent choose int8()"), ids(0), batches(2))
    with torch.no_grad():
        longer = ids(1, tokens=9)
        assert torch.cosine_similarity(made.reference(**longer), model(**longer), dim=-1).min() > 0.999


def test_everything_public_is_there() -> None:
    for name in tersor.__all__:
        assert getattr(tersor, name) is not None
        assert name in dir(tersor)
    with pytest.raises(AttributeError, match="nothing"):
        _ = tersor.nothing


def test_the_model_survives(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    tersor.compile(model, POLICY, ids(0), batches(2))
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_result_is_an_ordinary_module_close_to_the_original(model: nn.Module, result: tersor.Result) -> None:
    assert isinstance(result.module, nn.Module)
    original = copy.deepcopy(model).eval()
    for batch in (ids(100), ids(101, 1, 1), ids(102, 5, 30)):
        with torch.no_grad():
            expected = original(**batch)
            for module in (result.module, result.reference):
                assert torch.nn.functional.cosine_similarity(expected, module(**batch), dim=-1).min() > 0.99
                assert torch.equal(module(**batch), module(batch["input_ids"]))


def test_the_measured_fidelity_is_the_divergence_on_held_out_batches(model: nn.Module, result: tersor.Result) -> None:
    """KL(p || q) of the logits on the one batch in ten, from its definition."""
    assert result.report.fidelity is not None
    with torch.no_grad():
        batch = ids(9)
        p = copy.deepcopy(model).eval()(**batch).double().softmax(-1)
        q = result.module(**batch).double().softmax(-1)
    divergence = (p * (p / q).log()).sum(-1)
    found = result.report.fidelity
    assert found.vectors == divergence.numel()
    assert found.mean == pytest.approx(float(divergence.mean()), rel=1e-2, abs=1e-6)
    assert found.worst == pytest.approx(float(divergence.max()), rel=1e-2, abs=1e-6)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_saved_and_loaded_is_the_same(result: tersor.Result, tmp_path: Path) -> None:
    out = result.save(tmp_path / "out")
    read = [p for pattern in ("manifest.json", "graph-*.json", "weights-*.safetensors") for p in out.glob(pattern)]
    assert len(read) == 3
    assert sum(p.stat().st_size for p in read) == result.plan.bytes == result.report.bytes
    with torch.no_grad():
        assert torch.equal(tersor.load(out, "eager")(**ids(5)), result.reference(**ids(5)))
        assert torch.equal(tersor.load(out)(**ids(5)), result.module(**ids(5)))
    assert tersor.Policy.read(out / "policy.tersor") == tersor.Policy.parse(result.policy.to_text())
    plan = json.loads((out / "plan.json").read_text())
    del plan["fingerprint"]
    assert tersor.Plan.from_json(plan) == result.plan
    assert tersor.Report.from_json(json.loads((out / "report.json").read_text())) == result.report


def test_what_was_trained_is_what_is_saved(model: nn.Module, tmp_path: Path) -> None:
    result = tersor.compile(model, POLICY, ids(0), backend="eager")
    before = result.reference(**ids(3)).detach()
    result.reference.train()
    optimiser = torch.optim.SGD(result.reference.parameters(), lr=0.05)
    result.reference(**ids(1)).square().mean().backward()
    optimiser.step()
    result.reference.eval()
    with torch.no_grad():
        after = result.reference(**ids(3))
        result.save(tmp_path / "out")
        loaded = tersor.load(tmp_path / "out", "eager")(**ids(3))
    assert not torch.equal(before, after)
    # Trained scales and 16-bit values are rounded to 16 bits on disk: 2^-11 of each, over three layers.
    assert (loaded - after).abs().max() < 0.1 * (after - before).abs().max()


def test_plan_is_what_compile_does(model: nn.Module, result: tersor.Result) -> None:
    assert tersor.plan(model, POLICY, ids(0), batches()) == result.plan


def test_a_policy_from_python(model: nn.Module, result: tersor.Result) -> None:
    written = tersor.Policy(
        budgets=(Budget("size", 0.4, share=True),),
        rules=(
            Rule(
                Or(OfKind("linear"), OfKind("embedding")),
                (
                    Option((Use("quant.uniform", (("bits", Range(2, 8)), ("group", One("row")))),)),
                    Option((Use("quant.half"),)),
                ),
            ),
        ),
    )
    assert written == POLICY
    assert written.to_text() == POLICY.to_text()
    made = tersor.plan(model, written, ids(0), batches())
    assert [s.choice for s in made.sites] == [s.choice for s in result.plan.sites]
    wrong = tersor.Policy(rules=(Rule(OfKind("linear"), (Option((Use("quant.nothing"),)),)),))
    with pytest.raises(tersor.PolicyError, match="E101"):
        tersor.plan(model, wrong, ids(0))


def test_sixteen_bit_models_count_in_their_own_bytes(model: nn.Module, tmp_path: Path) -> None:
    halved = copy.deepcopy(model).eval().to(torch.bfloat16)
    result = tersor.compile(halved, tersor.Policy.parse("for linear choose uniform(bits = 8, group = row)"), ids(0))
    assert result.plan.original_bytes == 2 * sum(p.numel() for p in halved.parameters())
    assert result.plan.bytes < result.plan.original_bytes + 8000
    assert any("bfloat16" in note for note in result.plan.notes)
    out = result.save(tmp_path / "out")
    loaded = tersor.load(out)
    with torch.no_grad():
        expected = copy.deepcopy(halved).float()(**ids(4))
        assert torch.nn.functional.cosine_similarity(expected, loaded(**ids(4)), dim=-1).min() > 0.999
    assert next(halved.parameters()).dtype == torch.bfloat16


def test_sites_and_methods(model: nn.Module) -> None:
    assert [s.name for s in tersor.sites(model, ids(0)) if s.kind != "bias"] == [
        "embed.weight", "up.weight", "down.weight",
    ]  # fmt: skip
    assert "quant.uniform" in [m["id"] for m in tersor.methods()]


def test_progress_is_told(model: nn.Module) -> None:
    seen: list[tuple[str, int, int]] = []
    tersor.plan(model, POLICY, ids(0), batches(3), progress=lambda *step: seen.append(step))
    assert {stage for stage, _, _ in seen} >= {"calibrating", "pricing"}
    assert all(0 < done <= total for _, done, total in seen)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"backend": "abacus"}, tersor.RequestError, "no backend `abacus`"),
        ({"signal": "smoke"}, tersor.RequestError, "no signal `smoke`"),
        ({"data": []}, tersor.RequestError, "no examples"),
        ({"data": [ids(0), [1]]}, tersor.RequestError, "batch 2 of the data is a list"),
        ({"data": [{"input_ids": torch.full((1, 2), ROWS)}]}, tersor.RequestError, "fails on batch 1"),
        ({"example": ids(0)["input_ids"]}, tersor.RequestError, "not a mapping"),
        ({"model": 3}, tersor.RequestError, "not a torch.nn.Module"),
        ({"policy": 3}, tersor.RequestError, "not a int"),
        ({"policy": "budget size <= 1%\n"}, tersor.RequestError, "a text, not a path"),
        ({"policy": "nowhere.tersor"}, tersor.PolicyError, "nowhere.tersor"),
        ({"example": {}}, tersor.CaptureError, "empty"),
    ],
)
def test_what_is_wrong_is_said(
    model: nn.Module, change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {"model": model, "policy": POLICY, "example": ids(0), **change}
    with pytest.raises(error, match=message):
        tersor.compile(**arguments)  # type: ignore[arg-type]


def test_a_folder_that_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(tersor.ArtifactError, match="not an artifact"):
        tersor.load(tmp_path)


def test_a_file_in_the_way(result: tersor.Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(tersor.RequestError, match="cannot write"):
        result.save(tmp_path / "file" / "out")
