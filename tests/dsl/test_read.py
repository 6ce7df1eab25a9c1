"""Files that are no policies: each is answered with a diagnostic, never with a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tersor.compiler.diagnostics import PolicyError
from tersor.compiler.method import Method
from tersor.compiler.policy import Budget
from tersor.dsl import read_policy

Methods = Mapping[str, Method[Any]]


def code_of(path: Path, methods: Methods) -> str:
    with pytest.raises(PolicyError) as caught:
        read_policy(path, methods)
    assert str(path) in str(caught.value)
    return caught.value.diagnostics[0].code


def test_a_good_file_with_windows_line_ends_and_a_mark(tmp_path: Path, methods: Methods) -> None:
    path = tmp_path / "p.tersor"
    path.write_bytes(b"\xef\xbb\xbf# note\r\nbudget size <= 12 MB\r\n")
    assert read_policy(path, methods).budgets == (Budget("size", 12e6),)


def test_missing_and_folder(tmp_path: Path, methods: Methods) -> None:
    assert code_of(tmp_path / "none.tersor", methods) == "E010"
    assert code_of(tmp_path, methods) == "E010"
    assert code_of(tmp_path / ("x" * 5000), methods) == "E010"


@pytest.mark.parametrize("data", [b"budget \xff", b"PK\x03\x04\x00\x00", b"keep linear\n\0", "keep".encode("utf-16")])
def test_not_text(data: bytes, tmp_path: Path, methods: Methods) -> None:
    path = tmp_path / "p.tersor"
    path.write_bytes(data)
    assert code_of(path, methods) == "E011"


def test_the_place_of_a_bad_byte(tmp_path: Path, methods: Methods) -> None:
    path = tmp_path / "p.tersor"
    path.write_bytes(b"keep linear\n  \xc3\x28")
    with pytest.raises(PolicyError, match=r"p\.tersor:2:3: error\[E011\]"):
        read_policy(path, methods)


def test_too_large(tmp_path: Path, methods: Methods) -> None:
    path = tmp_path / "p.tersor"
    path.write_bytes(b"#" * (4 * 2**20 + 1))
    assert code_of(path, methods) == "E012"


def test_too_many_words(tmp_path: Path, methods: Methods) -> None:
    path = tmp_path / "p.tersor"
    path.write_bytes(b"keep linear\n" * 30_000)
    assert code_of(path, methods) == "E012"
