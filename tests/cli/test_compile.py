"""sites, plan, compile, show and bench on a tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tersor
from tersor.journal import JOURNAL

FILES = ("manifest.json", "graph-*.json", "weights-*.safetensors")
MODEL = "tiny_models:model"
DATA = ("--data", "tiny_models:batches")


@pytest.fixture
def artifact(run, workplace: Path) -> Path:
    """The artifact of the tiny model, made once."""
    out = workplace / "out"
    if not out.exists():
        ran = run("compile", MODEL, "--policy", "policy.tersor", *DATA, "--out", out)
        assert ran.code == 0, ran.err
        assert "times smaller" in ran.out
        assert "held-out data" in ran.out
        assert "numba" in ran.out
    return out


def test_sites(run) -> None:
    ran = run("sites", MODEL, "--json")
    assert {s["path"]: (s["kind"], s["shape"]) for s in ran.json} == {
        "embed": ("embedding", [500, 32]), "up": ("linear", [64, 32]), "up.bias": ("bias", [64]),
        "down": ("linear", [32, 64]), "down.bias": ("bias", [32]),
    }  # fmt: skip
    shown = run("sites", MODEL, "--why")
    assert "500 x 32" in shown.out


def test_plan_writes_nothing_and_shows_everything(run, workplace: Path) -> None:
    before = sorted(workplace.rglob("*"))
    ran = run("plan", MODEL, "--policy", "policy.tersor", *DATA, "--all")
    assert ran.code == 0, ran.err
    assert "budget" in ran.out
    assert "policy.tersor:2:" in ran.out
    assert "2 weights that no rule names" in ran.out
    assert sorted(p for p in workplace.rglob("*") if "__pycache__" not in p.parts) == [
        p for p in before if "__pycache__" not in p.parts
    ]


def test_the_plan_as_json_is_the_plan_that_is_compiled(run, artifact: Path) -> None:
    planned = run("plan", MODEL, "--policy", "policy.tersor", *DATA, "--json").json
    saved = json.loads((artifact / "plan.json").read_text())
    assert len(saved.pop("fingerprint")) == 64
    assert planned == saved


def test_the_budget_holds_on_disk(artifact: Path) -> None:
    plan = json.loads((artifact / "plan.json").read_text())
    on_disk = sum(path.stat().st_size for pattern in FILES for path in artifact.glob(pattern))
    assert on_disk == plan["bytes"] <= plan["budget"]
    assert plan["budget"] == pytest.approx(0.4 * plan["original_bytes"])


def test_it_loads_and_computes_what_the_original_does(artifact: Path) -> None:
    import tiny_models

    model, example = tiny_models.model()
    with torch.no_grad():
        expected, found = model.eval()(**example), tersor.load(artifact)(**example)
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.99
    assert not torch.equal(expected, found)


def test_what_is_up_to_date_is_not_made_again(run, artifact: Path) -> None:
    before = (artifact / "manifest.json").stat().st_mtime_ns
    ran = run("compile", MODEL, "--policy", "policy.tersor", *DATA, "--out", artifact)
    assert ran.code == 0
    assert "up to date" in ran.out
    assert (artifact / "manifest.json").stat().st_mtime_ns == before
    forced = run("compile", MODEL, "--policy", "policy.tersor", *DATA, "--out", artifact, "--force", "--json")
    assert forced.json["up_to_date"] is False
    assert forced.json["fidelity"]["on"] == "held-out data"
    assert (artifact / "manifest.json").stat().st_mtime_ns != before


def test_another_policy_or_a_damaged_artifact_is_made_anew(run, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    (weights,) = out.glob("weights-*.safetensors")
    weights.write_bytes(b"damaged")
    assert run("compile", MODEL, "--policy", "policy.tersor", *DATA, "--out", out, "--json").json["up_to_date"] is False
    other = tmp_path / "other.tersor"
    other.write_text("for linear choose half()\n")
    ran = run("compile", MODEL, "--policy", other, "--out", out)
    assert ran.code == 0, ran.err
    assert "not measured: there is no data" in ran.out


def test_a_folder_with_other_things_is_left_alone(run, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    ran = run("compile", MODEL, "--policy", "policy.tersor", "--out", tmp_path)
    assert ran.code == 2
    assert "is not empty" in ran.err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_impossible_budget_names_the_nearest_possible_one(run, tmp_path: Path) -> None:
    policy = tmp_path / "tight.tersor"
    text = "budget size <= {}\nfor linear or embedding choose uniform(bits = 2..8, group = row)\n"
    policy.write_text(text.format("1 kB"))
    ran = run("compile", MODEL, "--policy", policy, "--out", tmp_path / "out", "--json")
    assert ran.code == 3
    assert f"{policy}:1:1: error[E301]" in ran.err
    assert (tmp_path / "out" / JOURNAL).exists()  # the next budget measures nothing anew
    (problem,) = ran.json["error"]["diagnostics"]
    offered = problem["help"].removeprefix("raise the budget to ").split(",")[0]
    tersor.load(tmp_path / "out")  # the smallest there is
    assert any(note.startswith("the smallest artifact is kept: ") for note in problem["notes"])
    policy.write_text(text.format("1 kB"))
    assert run("compile", MODEL, "--policy", policy, "--out", tmp_path / "out").code == 3  # never taken for finished
    policy.write_text(text.format(offered))
    assert run("plan", MODEL, "--policy", policy).code == 0


def test_a_rule_that_matches_nothing_is_an_error(run, tmp_path: Path) -> None:
    policy = tmp_path / "nothing.tersor"
    policy.write_text('for linear in "encoder.**" choose half()\n')
    ran = run("plan", MODEL, "--policy", policy)
    assert ran.code == 2
    assert "error[E201]" in ran.err


def test_a_model_that_cannot_be_captured(run) -> None:
    ran = run("sites", "tiny_models:branching")
    assert ran.code == 4
    assert ran.err.startswith("error: ")
    assert "bug of tersor" not in ran.err


def test_show(run, artifact: Path) -> None:
    shown = run("show", artifact, "--json").json
    assert shown["checksums"] == "ok"
    read = [path.name for pattern in FILES for path in artifact.glob(pattern)]
    assert shown["bytes"] == sum(shown["files"][name] for name in read)
    assert shown["notes"] == []
    assert {h["site"] for h in shown["held"]} == {"embed.weight", "up.weight", "up.bias", "down.weight", "down.bias"}
    assert "affine" in run("show", artifact).out


@pytest.mark.parametrize("pattern", FILES)
def test_show_sees_damage(run, artifact: Path, tmp_path: Path, pattern: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    (path,) = out.glob(pattern)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    ran = run("show", out)
    assert ran.code == 2
    assert str(out) in ran.err


def test_show_compares_the_plan_with_the_weights(run, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    plan = json.loads((out / "plan.json").read_text())
    del plan["sites"][0]
    (out / "plan.json").write_text(json.dumps(plan))
    ran = run("show", out)
    assert ran.code == 2
    assert "disagree" in ran.err
    (out / "plan.json").unlink()
    assert run("show", out).code == 0


def test_documents_of_another_artifact_are_not_believed(run, artifact: Path, tmp_path: Path) -> None:
    """As after a writer that was killed between the artifact and its documents."""
    out = tmp_path / "out"
    shutil.copytree(artifact, out)
    beside = json.loads((out / "beside.json").read_text())
    (out / "beside.json").write_text(json.dumps({**beside, "artifact": "0" * 64}))
    shown = run("show", out, "--json").json
    assert "plan.json was not written with this artifact" in shown["notes"][0]
    assert {h["choice"] for h in shown["held"]} == {""}
    assert run("compile", MODEL, "--policy", "policy.tersor", *DATA, "--out", out, "--json").json["up_to_date"] is False
    assert run("show", out, "--json").json["notes"] == []


def test_bench(run, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.bench.SECONDS", 0.01)
    ran = run("bench", artifact, "--against", MODEL, *DATA, "--tokens", "3,8", "--batch", "2", "--json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["bytes"]["compiled"] < found["bytes"]["original"]
    assert {(t["name"], t["tokens"]) for t in found["timings"]} == {
        (name, tokens) for name in ("original", "compiled", "compiled, plain torch") for tokens in (3, 8)
    }
    assert all(0 < t["least"] <= t["median"] and t["batch"] == 2 and t["threads"] == 1 for t in found["timings"])
    assert 0 < found["fidelity"]["compiled"]["mean"] < 0.01
    assert "least ms" in run("bench", artifact, "--tokens", "4").out


def test_bench_says_what_it_read(run, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.bench.SECONDS", 0.01)
    same = run("bench", artifact, *DATA, "--tokens", "3", "--json").json
    (found,) = same["fidelity"].values()
    assert found["on"] == f"all batches of {DATA[1]}, calibration text included"
    assert any("calibrated on most of this data" in note for note in same["notes"])
    other = run("bench", artifact, "--data", "tiny_models:other_batches", "--tokens", "3", "--json").json
    (found,) = other["fidelity"].values()
    assert found["on"] == "all batches of tiny_models:other_batches"
    assert other["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--columns", "text"), "--columns names columns of --data, which is not given"),
        (("--tokens", "many"), "--tokens many: give lengths"),
        (("--backend", "abacus"), "there is no backend `abacus`"),
        (("--against", "tiny_models:wide"), "`tiny_models:wide` does not take what"),
        (("--data", "tiny_models:too_large_ids"), "the model fails on batch 1"),
    ],
)
def test_what_cannot_be_benched(run, artifact: Path, arguments: tuple[str, ...], message: str) -> None:
    ran = run("bench", artifact, *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
