"""Error forms that wait in a temporary file: together they are as large as the model, and one is needed at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from tersor.compiler.measure.forms import Form


class Shelf(Mapping[str, Form]):
    """Forms by site name, each read from the file when it is asked for. The file has no name and goes with the
    shelf."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the shelf stands)
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, int]] = {}
        self.put(forms)

    def put(self, forms: Mapping[str, Form]) -> None:
        """Add forms; one that several sites share is written once."""
        written: dict[int, tuple[int, int]] = {}
        for name, form in forms.items():
            if id(form) not in written:
                written[id(form)] = (self._file.seek(0, 2), form.width)
                for rows in form.arrays().values():
                    self._file.write(rows.contiguous().numpy().data)
            self._places[name] = written[id(form)]

    def __getitem__(self, name: str) -> Form:
        at, width = self._places[name]
        self._file.seek(at)
        arrays = {}
        for key, rows in Form(width).arrays().items():
            data = np.frombuffer(bytearray(self._file.read(rows.nbytes)), np.float32)
            arrays[key] = torch.from_numpy(data).reshape(rows.shape)
        return Form.of(arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
