"""A Hugging Face folder with a tokenizer, made here: text, pairs and columns as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tersor.compiler.errors import RequestError
from tersor.data import read_data
from tersor.models import Model, read_model

pytest.importorskip("transformers", reason="Hugging Face folders need transformers")

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "it",
    "then",
    "mat",
    ".",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    path = tmp_path_factory.mktemp("bert")
    (path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab_file=str(path / "vocab.txt"), vocab=str(path / "vocab.txt")).save_pretrained(path)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).to(torch.bfloat16).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return read_model(str(folder))


def test_the_model_is_what_its_configuration_names(model: Model) -> None:
    assert type(model.module).__name__ == "BertModel"
    assert not model.module.training
    assert set(model.example) == {"input_ids", "attention_mask", "token_type_ids"}
    assert model.positions == 24
    assert model.notes == ()


def test_a_file_is_read_once_and_may_be_gone_then(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat\na dog\nit sat\n")
    kept = read_data(str(path), model)
    monkeypatch.setattr("tersor.data.evenly", lambda texts, most: path.unlink() or list(texts))
    assert read_data(str(path), model).source == kept.source
    with pytest.raises(RequestError, match="there is no such file"):
        read_data(str(path), model)


def test_text_becomes_padded_batches_of_like_length(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(" ".join(["cat"] * (1 + i % 40)) for i in range(100)) + "\n\n")
    data = read_data(str(path), model)
    assert sum(len(b["input_ids"]) for b in data.calibration) == 90
    assert sum(len(b["input_ids"]) for b in data.held_out) == 10
    widths = [b["input_ids"].shape[1] for b in data.calibration]
    assert max(widths) == 24  # its table of positions is shorter than 128 tokens
    for batch in data.calibration:
        assert torch.equal(batch["attention_mask"] == 0, batch["input_ids"] == WORDS.index("[PAD]"))
    assert any("1 blank" in note for note in data.notes)
    assert any("10 of 100 examples were held out" in note for note in data.notes)
    assert data.read == "all 100 examples of a.txt, at most 24 tokens of each"
    path.write_text("cat\n" * 3000)
    assert read_data(str(path), model, max_tokens=3).read == (
        "2,048 of the 3,000 examples of a.txt, at most 3 tokens of each"
    )


def test_two_columns_are_a_pair(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("sentence1,sentence2\nthe cat,a dog ran\nit sat,then it ran\n")
    data = read_data(f"{path}:sentence1,sentence2", model)
    (batch,) = data.calibration
    ids = [WORDS.index(w) for w in ["[CLS]", "the", "cat", "[SEP]", "a", "dog", "ran", "[SEP]"]]
    assert batch["input_ids"].tolist() == [ids]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]


def test_a_folder_becomes_an_artifact_with_its_tokenizer(
    run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.bench.SECONDS", 0.01)
    data, policy, out = tmp_path / "a.txt", tmp_path / "p.tersor", tmp_path / "out"
    data.write_text("the cat sat on a mat .\n" * 30)
    policy.write_text("for linear or embedding choose uniform(bits = 8, group = row)\nkeep norm or bias\n")
    ran = run("compile", folder, "--policy", policy, "--data", data, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert any("bfloat16" in note for note in ran.json["notes"])
    assert 0 < ran.json["fidelity"]["mean"] < 1e-3
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    plan = json.loads((out / "plan.json").read_text())
    kept = [s for s in plan["sites"] if s["choice"] == "keep"]
    assert kept
    assert all(s["original_bytes"] == 2 * torch.Size(s["shape"]).numel() for s in plan["sites"])
    benched = run("bench", out, "--data", data, "--tokens", "4", "--json")
    assert benched.code == 0, benched.err
    (found,) = benched.json["fidelity"].values()
    assert found["on"] == "all 30 examples of a.txt, at most 24 tokens of each, calibration text included"
    (tmp_path / "b.txt").write_text("a dog ran on .\n" * 3)
    other = run("bench", out, "--data", tmp_path / "b.txt", "--tokens", "4", "--max-tokens", "5", "--json").json
    (found,) = other["fidelity"].values()
    assert found["on"] == "all 3 examples of b.txt, at most 5 tokens of each"


def test_a_folder_without_weights(run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    ran = run("sites", tmp_path)
    assert ran.code == 2
    assert "cannot be loaded" in ran.err
