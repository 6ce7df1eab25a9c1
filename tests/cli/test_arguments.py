"""MODEL and DATA arguments that cannot be used: each error names the thing and the place."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

from tersor.compiler.errors import RequestError
from tersor.data import evenly
from tersor.jobs import deadline_of
from tersor.reading import read_examples


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/folder", "there is no such folder"),
        ("policy.tersor", "it is a file"),
        (".", "it has no config.json"),
        ("tiny_models:nothing", "has no function nothing"),
        ("no_such_module:model", "No module named 'no_such_module'"),
        ("tiny_models:failing", "LookupError: no model today"),
        ("tiny_models:wrong", "must return (module, example)"),
    ],
)
def test_models_that_are_none(run, model: str, message: str) -> None:
    ran = run("sites", model)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("nothing.txt", "nothing.txt: there is no such file"),
        ("tiny_models:no_batches", "the data has no examples"),
        ("tiny_models:too_large_ids", "the model fails on batch 1"),
        ("tiny_models:wrong_name", "batch 1 of the data does not fit the model"),
        ("tiny_models:not_a_tensor", "batch 1 of the data: input_ids is not a tensor"),
        ("policy.tersor", "text needs a tokenizer"),
    ],
)
def test_data_that_is_none(run, data: str, message: str) -> None:
    ran = run("plan", "tiny_models:model", "--policy", "policy.tersor", "--data", data)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("a.txt", b"", (), "has no examples"),
        ("a.txt", b"\n \n\t\n", (), "all 3 are blank"),
        ("a.txt", b"good\n\x80\x81\n", (), "a.txt:2: byte 0x80 is not UTF-8"),
        ("a.txt", b"good\n\0\n", (), "a.txt:2: a zero byte"),
        ("a.txt", b"good\n", ("text",), "plain text and has no columns"),
        ("a.jsonl", b'{"text": "x"}\n{"tex": "y"}\n', (), "a.jsonl:2: there is no column `text`; there are tex"),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', (), "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": 3}\n', (), "a.jsonl:1: `text` is a int, not a text"),
        ("a.jsonl", b"[1]\n", (), "a.jsonl:1: a JSON object is expected"),
        ("a.jsonl", b'{"a": "x", "b": "y"}\n', (), "name one or two"),
        ("a.csv", b"a,b\nx,y\n", ("c",), "a.csv:1: there is no column `c`; there are a, b"),
        ("a.csv", b"a,b\nx,y\nz\n", ("a",), "a.csv:3: 1 values for 2 columns"),
        ("a.csv", b'a\n"x\n', (), "a.csv:"),
        ("a.csv", b"a,b,c\nx,y,z\n", ("a", "b", "c"), "one or two columns, not 3"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, content: bytes, columns: tuple[str, ...], message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RequestError) as problem:
        read_examples(tmp_path / name, columns)
    assert message in str(problem.value)


def test_a_folder_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="directory"):
        read_examples(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "columns", "expected"),
    [
        ("a.txt", "\ufeffone\r\n\r\n two\r\n", (), [("one",), (" two",)]),
        ("a.jsonl", '{"text": "x", "n": 1}\n\n{"text": ""}\n"plain"\n', (), [("x",), ("plain",)]),
        ("a.csv", 'a,b\n"x, ""q""",y\n\nz,w\n', ("b", "a"), [("y", 'x, "q"'), ("w", "z")]),
        ("a.csv", 'a\n"two\nlines"\n', (), [("two\nlines",)]),
        ("a.tsv", "sentence\tlabel\nx y\t1\n", (), [("x y",)]),
    ],
)
def test_files_that_are_right(
    tmp_path: Path, name: str, content: str, columns: tuple[str, ...], expected: list[tuple[str, ...]]
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert read_examples(tmp_path / name, columns).texts == expected


def test_a_huge_line_is_an_example(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 1_000_000 + "\nsmall\n")
    assert len(read_examples(tmp_path / "a.txt").texts) == 2


def test_examples_are_spread_evenly() -> None:
    texts = [(str(i),) for i in range(1000)]
    found = [int(text) for (text,) in evenly(texts, 100)]
    assert all(10 * i <= place < 10 * (i + 1) for i, place in enumerate(found))
    assert evenly(texts, 100) == evenly(texts, 100)
    assert evenly(texts, 2000) == texts


def test_time_counts_from_when_the_command_began() -> None:
    assert deadline_of("1m", monotonic() - 20).left() == pytest.approx(40, abs=1)
    assert deadline_of(None, monotonic() - 20).left() == float("inf")
