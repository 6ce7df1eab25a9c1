"""What lies in an artifact folder beside the model: plan, report, example, tokenizer; and whether it is up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tersor import __version__
from tersor.batches import Batch
from tersor.compiler.artifact.files import beside, read
from tersor.compiler.artifact.names import MANIFEST, STAGING, is_data
from tersor.compiler.errors import ArtifactError, RequestError
from tersor.compiler.plan import Plan
from tersor.compiler.report import SearchReport
from tersor.journal import is_journal, measuring
from tersor.policies import Policy
from tersor.report import Report
from tersor.result import EXAMPLE, PLAN, REPORT, SEARCH

CALIBRATION = "calibration.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip


def tokenizer_files(folder: Path | None) -> dict[str, bytes]:
    """The files of a Hugging Face folder that its tokenizer is made of."""
    if folder is None:
        return {}
    return {name: (folder / name).read_bytes() for name in TOKENIZER if (folder / name).is_file()}


def fingerprint(module: nn.Module, policy: Policy, batches: Iterable[Batch], settings: Mapping[str, Any]) -> str:
    """A hash of everything a compilation depends on: version, model, policy, data and settings."""
    state = hashlib.sha256(f"{__version__} {type(module).__qualname__}\n{policy.to_text()}".encode())
    state.update(json.dumps(settings, sort_keys=True, default=str).encode())
    described = getattr(getattr(module, "config", None), "to_json_string", str)()
    state.update(f"{module!r}\n{described}".encode())
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        _add(state, name, value)
    for batch in batches:
        for name, value in batch.items():
            _add(state, name, value)
    return state.hexdigest()


def mark_of(module: nn.Module, calibration: Sequence[Batch] | None, signal: str | None) -> str:
    """Under what the measurements of a model on some data are kept."""
    settings = {"signal": signal, "measured by": measuring(), "data": calibration is not None}
    return fingerprint(module, Policy(), calibration or (), settings)


def _add(state: Any, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        state.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        state.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def check_out(folder: Path) -> None:
    """Refuse to write into a folder that holds something else than an artifact. Raises RequestError."""
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"--out {folder} is a file, not a folder")
    if not folder.is_dir() or (folder / MANIFEST).is_file():
        return
    left = [entry.name for entry in folder.iterdir()]  # maybe by a run that was killed
    if not all(name.startswith(STAGING) or is_data(name) or is_journal(name) for name in left):
        raise RequestError(f"--out {folder} is not empty and holds no artifact: name another folder")


def _document(folder: Path, name: str) -> Any:
    """A document that was written with the artifact of the folder; None where there is none."""
    path = folder / name
    if name not in beside(folder) or not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as problem:
        raise ArtifactError(f"{path} cannot be read: {problem}") from None


def saved_plan(folder: Path) -> tuple[Plan, str] | None:
    """The plan of an artifact and its fingerprint; None where there is none."""
    data = _document(folder, PLAN)
    if data is None:
        return None
    try:
        mark = data.pop("fingerprint")
        return Plan.from_json(data), str(mark)
    except (AttributeError, KeyError, TypeError) as problem:
        raise ArtifactError(f"{folder / PLAN} is not a plan of this version: {problem!r}") from None


def saved_report(folder: Path) -> Report | None:
    """The report of an artifact; None where there is none."""
    data = _document(folder, REPORT)
    if data is None:
        return None
    try:
        return Report.from_json(data)
    except (AttributeError, KeyError, TypeError) as problem:
        raise ArtifactError(f"{folder / REPORT} is not a report of this version: {problem!r}") from None


def saved_search(folder: Path) -> SearchReport:
    """What the search that wrote an artifact came to. Raises ArtifactError where none did."""
    data = _document(folder, SEARCH)
    if data is None:
        raise ArtifactError(f"{folder} has no {SEARCH} of its artifact: `tersor search` writes one")
    try:
        return SearchReport.from_json(data)
    except (AttributeError, KeyError, TypeError) as problem:
        raise ArtifactError(f"{folder / SEARCH} is not a report of this version: {problem!r}") from None


def calibration_record(source: str) -> dict[str, bytes]:
    """The document that says which data an artifact was calibrated on."""
    return {CALIBRATION: json.dumps({"source": source}).encode()}


def calibrated_on(folder: Path) -> str | None:
    """The source of the data that an artifact was calibrated on; None where it is not recorded."""
    data = _document(folder, CALIBRATION)
    return str(data.get("source")) if isinstance(data, dict) else None


def saved_example(folder: Path) -> dict[str, Tensor] | None:
    """The example inputs an artifact was made with; None where they are missing."""
    path = folder / EXAMPLE
    if EXAMPLE not in beside(folder) or not path.is_file():
        return None
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as problem:
        raise ArtifactError(f"{path} cannot be read: {problem}") from None


def finished(folder: Path) -> tuple[str, Report] | None:
    """Fingerprint and report of an artifact that is whole; None for anything less, which is then made again."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        read(folder)
        plan, report = saved_plan(folder), saved_report(folder)
    except ArtifactError:
        return None
    return (plan[1], report) if plan is not None and report is not None else None
