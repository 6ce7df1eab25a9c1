"""A compiled model with everything that is known about it, and how it gets to disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from tersor.compiler.artifact.files import disk_size
from tersor.compiler.artifact.image import image, size_of
from tersor.compiler.artifact.leaves import opaque_leaves
from tersor.compiler.artifact.load import load
from tersor.compiler.artifact.writing import write
from tersor.compiler.callable import CompiledModule
from tersor.compiler.equality import difference
from tersor.compiler.errors import CompilerBug, RequestError
from tersor.compiler.install import assign, installed
from tersor.compiler.pipeline import Planned
from tersor.compiler.plan import Plan
from tersor.compiler.rewrite import TraceStep
from tersor.policies import Policy
from tersor.report import Report

PLAN, TRACE, POLICY, REPORT, REPORT_TEXT, PAGE, EXAMPLE = (
    "plan.json", "trace.json", "policy.tersor", "report.json", "report.txt", "report.html", "example.safetensors",
)  # fmt: skip
SEARCH = "search.json"


@dataclass(frozen=True)
class Result:
    """`module` computes on the chosen backend, `reference` is the same model in plain torch, trainable; both take the
    arguments of the original. `fingerprint` tells from what it was made."""

    module: nn.Module
    reference: CompiledModule
    plan: Plan
    report: Report
    trace: tuple[TraceStep, ...]
    policy: Policy
    planned: Planned = field(repr=False)
    held: Mapping[str, Mapping[str, str]] = field(repr=False)
    example: Mapping[str, Tensor] = field(repr=False)
    fingerprint: str = ""

    def save(self, folder: str | Path, extra: Mapping[str, bytes] = {}) -> Path:
        """Write the artifact, with the weights as they are in `reference` now, rounded to what their disk form holds,
        after checking it: reloaded from disk it must fit the budget and compute the same. Whatever stops this, the
        folder holds the artifact it held before or the new one. `extra` are further files, beside those that loading
        reads.

        Raises RequestError where the folder cannot be written.
        """
        folder = Path(folder)
        graph = self.reference.graph_module
        stores = installed(graph, self.held, self.planned.stores)
        written = image(graph, self.reference.signature, self.held, stores)
        if self.plan.budget is not None and size_of(written) > self.plan.budget:
            raise RequestError(
                f"after training the artifact takes {size_of(written)} bytes, more than the budget of "
                f"{self.plan.budget:.0f}: compile with a budget a little smaller"
            )
        kept = copy.deepcopy(self.reference)  # trained values are rounded in the artifact, not in the module
        assign(kept.graph_module, self.held, stores)
        check = partial(self._verify, expected=size_of(written), kept=kept.eval())
        write(folder, written.files, {**self._documents(), **extra}, check)
        return folder

    def _documents(self) -> dict[str, bytes]:
        trace = [vars(step) for step in self.trace]
        return {
            PLAN: _json({"fingerprint": self.fingerprint, **self.plan.to_json()}),
            TRACE: _json(trace),
            POLICY: self.policy.to_text().encode(),
            REPORT: _json(self.report.to_json()),
            REPORT_TEXT: self.report.to_text().encode(),
            EXAMPLE: safetensors.torch.save({n: t.contiguous().clone() for n, t in self.example.items()}),
        }

    def _verify(self, folder: Path, expected: int, kept: CompiledModule) -> None:
        on_disk = disk_size(folder)
        if on_disk != expected:
            raise CompilerBug(f"{folder} takes {on_disk} bytes, {expected} were written")
        loaded = load(folder, opaque_leaves(kept.graph_module))
        again = CompiledModule(loaded.module, loaded.signature).eval()
        with torch.no_grad():
            found = difference(again(**self.example), kept(**self.example))
        if found is not None:
            raise CompilerBug(f"the model reloaded from {folder} computes something else: {found}")


def _json(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode()
