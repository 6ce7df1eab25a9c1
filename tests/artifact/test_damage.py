"""Whatever is done to the files of an artifact, loading answers with one sentence, and nothing in them is executed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.artifact.compressed_zoo import rewritten
from tests.artifact.test_round_trip import image_of
from torch import nn

from tersor.compiler.artifact.image import Image
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.names import FORMAT, GRAPH, MANIFEST, WEIGHTS, data_name
from tersor.compiler.artifact.writing import write
from tersor.compiler.errors import ArtifactError

NAME, RECIPE = "lstm_lm", "prune"
Edit = Callable[[Any], object]
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def files() -> Image:
    return image_of(NAME, RECIPE)


def refused(folder: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        load(folder)
    message = str(caught.value)
    assert len(message) > 20
    assert "Traceback" not in message
    return message


def named(files: Image, part: str) -> str:
    """The name of the manifest or of a part."""
    return MANIFEST if part == MANIFEST else str(json.loads(files.files[MANIFEST])[part]["file"])


def edited(files: Image, edit: Edit) -> Image:
    """The files after a change to the graph description that the checksum does not show."""
    graph = copy.deepcopy(json.loads(files.graph))
    edit(graph)
    return replace(files, graph=json.dumps(graph).encode())


def test_the_files_as_they_are_load(files: Image, tmp_path: Path) -> None:
    write(tmp_path, edited(files, lambda _: None).files)
    assert load(tmp_path).module is not None


@pytest.mark.parametrize("part", [MANIFEST, GRAPH, WEIGHTS])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_truncated(files: Image, part: str, share: float, tmp_path: Path) -> None:
    write(tmp_path, files.files)
    name = named(files, part)
    data = files.files[name]
    (tmp_path / name).write_bytes(data[: min(len(data) - 1, int(len(data) * share))])
    refused(tmp_path)


@pytest.mark.parametrize("part", [GRAPH, WEIGHTS])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.999])
def test_one_bit_flipped(files: Image, part: str, share: float, tmp_path: Path) -> None:
    write(tmp_path, files.files)
    name = named(files, part)
    data = bytearray(files.files[name])
    data[int(len(data) * share)] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    assert "checksum" in refused(tmp_path)


@same_folder
@given(data=st.data())
def test_any_byte_of_the_manifest(files: Image, tmp_path: Path, data: st.DataObject) -> None:
    """Refused, or a change that says the same (a space, a key nobody reads)."""
    manifest = bytearray(files.files[MANIFEST])
    manifest[data.draw(st.integers(0, len(manifest) - 1))] = data.draw(st.integers(0, 255))
    write(tmp_path, {**files.files, MANIFEST: bytes(manifest)})
    try:
        load(tmp_path)
    except ArtifactError as problem:
        assert len(str(problem)) > 20


@pytest.mark.parametrize("part", [MANIFEST, GRAPH, WEIGHTS])
def test_a_missing_file(files: Image, part: str, tmp_path: Path) -> None:
    write(tmp_path, files.files)
    name = named(files, part)
    (tmp_path / name).unlink()
    assert name in refused(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    assert "not an artifact" in refused(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "not an artifact" in refused(tmp_path / "file")


@pytest.mark.parametrize("part", [MANIFEST, GRAPH])
def test_a_folder_in_place_of_a_file(files: Image, part: str, tmp_path: Path) -> None:
    write(tmp_path, files.files)
    name = named(files, part)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    refused(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [
        b"", b"{", b"\xff\xfe\x00", b"null", b"[]", b"3", b'"text"', b"{}", b'{"format": "1"}', b'{"format": 1}',
        b'{"format": true}', b'{"format": 2}', b'{"format": 2, "graph": null}', b'{"format": 2, "graph": {"file": 3}}',
        b'{"format": 2, "graph": {"file": "../graph-0123456789abcdef.json"}, "weights": {}}',
        b'{"format": 2, "graph": {"file": "manifest.json"}, "weights": {"file": "manifest.json"}}',
        b"[" * 100_000, b'{"a":' * 100_000, b'{"format": NaN}', b'{"format": 0}', b'{"format": -5}',
    ],
    ids=lambda m: repr(m[:24]),
)  # fmt: skip
def test_a_manifest_that_is_none(files: Image, manifest: bytes, tmp_path: Path) -> None:
    write(tmp_path, {**files.files, MANIFEST: manifest})
    refused(tmp_path)


def test_a_newer_format_is_named(files: Image, tmp_path: Path) -> None:
    manifest = json.loads(files.files[MANIFEST]) | {"format": FORMAT + 1}
    write(tmp_path, {**files.files, MANIFEST: json.dumps(manifest).encode()})
    message = refused(tmp_path)
    assert f"format {FORMAT + 1}" in message
    assert "update" in message


def test_an_older_format_is_named(files: Image, tmp_path: Path) -> None:
    write(tmp_path, {**files.files, MANIFEST: b'{"format": 1, "files": {}}'})
    message = refused(tmp_path)
    assert "format 1" in message
    assert "compile" in message


def test_a_manifest_names_no_file_elsewhere(files: Image, tmp_path: Path) -> None:
    """Not even one with the right bytes."""
    write(tmp_path / "inner", files.files)
    manifest = json.loads(files.files[MANIFEST])
    name = manifest[GRAPH]["file"]
    (tmp_path / "inner" / name).rename(tmp_path / name)
    manifest[GRAPH]["file"] = f"../{name}"
    (tmp_path / "inner" / MANIFEST).write_text(json.dumps(manifest))
    assert "does not name its graph" in refused(tmp_path / "inner")
    assert data_name(GRAPH, manifest[GRAPH]["sha256"]) == name


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b"[" * 200_000, b'{"nodes":' * 100_000, b"\x80"])
def test_a_graph_that_is_none(files: Image, data: bytes, tmp_path: Path) -> None:
    write(tmp_path, replace(files, graph=data).files)
    refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 64, b"\x10\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_weights_that_are_none(files: Image, data: bytes, tmp_path: Path) -> None:
    write(tmp_path, replace(files, weights=data).files)
    refused(tmp_path)


def set_in(*keys: Any, value: Any) -> Edit:
    def edit(graph: Any) -> None:
        for key in keys[:-1]:
            graph = graph[key]
        graph[keys[-1]] = value

    return edit


def call(graph: Any) -> list[Any]:
    """The first row that calls a function."""
    return next(row for row in graph["nodes"] if row[1] == "call_function")


def retarget(target: Any) -> Edit:
    def edit(graph: Any) -> None:
        call(graph)[2] = target

    return edit


def argument(value: Any) -> Edit:
    def edit(graph: Any) -> None:
        call(graph)[3][0] = value

    return edit


def every(key: str, change: Callable[[Any], Any]) -> Edit:
    def edit(graph: Any) -> None:
        graph[key] = {name: change(value) for name, value in graph[key].items()}

    return edit


def first_module(field: str, value: Any, kind: str) -> Edit:
    def edit(graph: Any) -> None:
        next(m for m in graph["modules"].values() if m["type"] == kind)[field] = value

    return edit


EDITS: dict[str, Edit] = {
    **{
        f"no {key}": (lambda g, k=key: g.pop(k))
        for key in ("signature", "nodes", "modules", "held", "stores", "buffers")
    },
    **{
        f"{key} is {v!r}": set_in(key, value=v)
        for key in ("signature", "nodes", "modules", "held", "stores")
        for v in (3, "x", None)
    },
    "an unknown operator": retarget("aten.no_such_operator.default"),
    "an unknown overload": retarget("aten.add.no_such_overload"),
    "an operator without overload": retarget("aten.add"),
    "another namespace": retarget("prims.add.default"),
    "a builtin": retarget("builtins.eval"),
    "os.system": retarget("os.system"),
    "an attribute of the namespace": retarget("aten.__class__.__mro__"),
    "a dunder": retarget("aten.__init__.__globals__"),
    "a function that is no text": retarget(7),
    "a method call": lambda g: call(g).__setitem__(1, "call_method"),
    "an unknown operation": lambda g: call(g).__setitem__(1, "do_it"),
    "an unknown node": argument({"n": "nowhere"}),
    "an unknown tag": argument({"python": "import os"}),
    "two tags": argument({"n": "x", "t": []}),
    "a torch function as value": argument({"torch": "load"}),
    "an unknown torch value": argument({"torch": "no_such_dtype"}),
    "a bad device": argument({"device": "nowhere"}),
    "a bad float": argument({"float": "abc"}),
    "an unhashable tag": argument({"n": []}),
    "a default that is code": lambda g: g["nodes"][0].__setitem__(2, "x=print(1)"),
    "a path that is code": lambda g: g["nodes"].insert(1, ["extra", "get_attr", 'a"), print(1), getattr(self, "a', []]),
    "a keyword that is code": lambda g: call(g).append({"a=print(1), b": 1}),
    "a placeholder that is a keyword": lambda g: g["nodes"][0].__setitem__(2, "lambda"),
    "a short row": lambda g: g["nodes"][0].clear(),
    "a row of text": lambda g: g["nodes"].__setitem__(0, "abcd"),
    "a name twice": lambda g: g["nodes"].insert(1, g["nodes"][0]),
    "no output": lambda g: g["nodes"].pop(),
    "a call of a module that is not there": lambda g: g["nodes"].insert(
        -1, ["extra", "call_module", "no.such.module", [{"n": g["nodes"][0][0]}]]
    ),
    "an attribute that is not there": lambda g: g["nodes"].insert(0, ["extra", "get_attr", "no.such.attribute", []]),
    "an unknown module type": first_module("type", "pickle", "linear"),
    "a linear of another width": first_module("in", 17, "linear"),
    "a linear of another height": first_module("out", 3, "linear"),
    "a linear of negative width": first_module("in", -1, "linear"),
    "a linear of text": first_module("in", "x", "linear"),
    "an endless linear": first_module("in", 2**70, "linear"),
    "an embedding of more rows": first_module("rows", 1000, "embedding"),
    "an embedding of another width": first_module("width", 3, "embedding"),
    "a recurrent layer of another size": first_module("hidden", 5, "recurrent"),
    "a recurrent layer of more layers": first_module("layers", 3, "recurrent"),
    "an unknown recurrent layer": first_module("mode", "XYZ", "recurrent"),
    "a recurrent layer of another kind": first_module("mode", "GRU", "recurrent"),
    "a bias that nobody holds": first_module("bias", False, "recurrent"),
    "held where there is nothing": every("held", lambda held: {"no_such_attribute": next(iter(held.values()))}),
    "holding nothing that exists": every("held", lambda held: dict.fromkeys(held, "nowhere")),
    "held by a path of dots": lambda g: g["held"].update({"..": {"weight": next(iter(g["stores"]))}}),
    "held by a class": lambda g: g["held"].update({"embed.__class__": {"weight": next(iter(g["stores"]))}}),
    "a module at a dunder": lambda g: g["modules"].update({"__class__": {"type": "dropout", "p": 0.1}}),
    "a module at forward": lambda g: g["modules"].update({"forward": {"type": "dropout", "p": 0.1}}),
    "a module at a path of dots": lambda g: g["modules"].update({"a..b": {"type": "dropout", "p": 0.1}}),
    "a module at no path": lambda g: g["modules"].update({"": {"type": "dropout", "p": 0.1}}),
    "a module inside another": lambda g: g["modules"].update({"rnn.inner": {"type": "dropout", "p": 0.1}}),
    "a buffer that is not there": lambda g: g["buffers"].append("../../etc/passwd"),
    "stores of other shapes": every("stores", lambda s: s | {"shape": [n + 1 for n in s["shape"]]}),
    "stores turned": every("stores", lambda s: s | {"shape": s["shape"][::-1]}),
    "stores of no kind": every("stores", lambda s: s | {"kind": "nothing"}),
    "an output class that is not ours": set_in(
        "signature", "output", value={"group": "os:system", "items": [], "fields": []}
    ),
    "an output that is not there": set_in("signature", "output", value={"tensor": 99}),
    "no outputs": set_in("signature", "output", value={}),
    "another input": set_in("signature", "inputs", value=[{"name": "x", "dtype": "int64", "rank": 2}]),
    "no inputs": set_in("signature", "inputs", value=[]),
    "an input of a made up kind": lambda g: g["signature"]["inputs"][0].update({"default": "explode:input_ids"}),
    "a limit on nothing": set_in("signature", "limits", value=[{"input": "x", "dim": 9, "max": 1, "what": "y"}]),
}


def test_no_file_changes_a_class(files: Image, tmp_path: Path) -> None:
    before = dict(vars(nn.Embedding))
    write(tmp_path, edited(files, EDITS["held by a class"]).files)
    refused(tmp_path)
    assert dict(vars(nn.Embedding)) == before


@pytest.mark.parametrize("what", EDITS)
def test_a_changed_description(files: Image, what: str, tmp_path: Path) -> None:
    write(tmp_path, edited(files, EDITS[what]).files)
    refused(tmp_path)


@same_folder
@given(data=st.data())
def test_any_value_of_the_graph_replaced(files: Image, tmp_path: Path, data: st.DataObject) -> None:
    """Refused with a sentence, or loaded; never another exception."""

    def edit(place: Any) -> None:
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 5)):
                place = place[key]
                continue
            junk = st.one_of(
                st.integers(-3, 2**65), st.text(max_size=5), st.none(), st.floats(allow_nan=False),
                st.just({}), st.just([]), st.sampled_from([{"n": "x"}, [[]]]),
                st.sampled_from(["__class__", "a.b", "..", "aten.add.Tensor", "output", "call_method"]),
            )  # fmt: skip
            place[key] = data.draw(junk)
            return

    load_or_refuse(edited(files, edit), tmp_path)


@same_folder
@given(data=st.data())
def test_any_byte_of_the_graph_replaced(files: Image, tmp_path: Path, data: st.DataObject) -> None:
    graph = bytearray(files.graph)
    for _ in range(data.draw(st.integers(1, 3))):
        graph[data.draw(st.integers(0, len(graph) - 1))] = data.draw(
            st.sampled_from(b'0123456789-.[]{}",:abetnuls_ \xff')
        )
    load_or_refuse(replace(files, graph=bytes(graph)), tmp_path)


def load_or_refuse(files: Image, folder: Path) -> None:
    write(folder, files.files)
    try:
        loaded = load(folder)
    except ArtifactError as problem:
        assert len(str(problem)) > 20
    else:
        assert not loaded.module.training


def test_loading_leaves_the_model_it_came_from_alone(files: Image, tmp_path: Path) -> None:
    before = {n: p.clone() for n, p in rewritten(NAME, RECIPE).named_parameters()}
    write(tmp_path, files.files)
    for parameter in load(tmp_path).module.parameters():
        parameter.data.zero_()
    assert all(bool((p == before[n]).all()) for n, p in rewritten(NAME, RECIPE).named_parameters())
