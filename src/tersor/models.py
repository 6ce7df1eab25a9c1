"""The MODEL argument: a Hugging Face folder, or `package.module:function` returning `(module, example_kwargs)`."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tersor.compiler.errors import RequestError

TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
TEXTS = ("The quick brown fox jumps over the lazy dog.", "A second, shorter sentence.")


@dataclass(frozen=True)
class Model:
    """A module with an example of its arguments; `folder` and `tokenizer` where it came from a Hugging Face folder."""

    name: str
    module: nn.Module
    example: Mapping[str, Tensor]
    folder: Path | None = None
    tokenizer: Any = None
    notes: tuple[str, ...] = ()

    @property
    def accepted(self) -> frozenset[str]:
        """The names of the arguments of `forward`."""
        return frozenset(inspect.signature(self.module.forward).parameters)

    @property
    def positions(self) -> int | None:
        """The longest sequence its configuration speaks of."""
        config = getattr(self.module, "config", None)
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
            found = getattr(config, name, None)
            if isinstance(found, int) and found > 0:
                return found
        return None


def read_model(argument: str) -> Model:
    """The model behind a MODEL argument, in eval mode. Raises RequestError."""
    folder = Path(argument)
    if folder.is_dir():
        return from_folder(folder)
    if TARGET.fullmatch(argument):
        return from_function(argument)
    why = "it is a file, not a folder" if folder.exists() else "there is no such folder"
    raise RequestError(
        f"MODEL `{argument}`: {why}; give a Hugging Face folder, or package.module:function returning (module, example)"
    )


def imported(argument: str, what: str) -> Callable[..., Any]:
    """The function `package.module:function`; modules are found from the current folder too. Raises RequestError."""
    module, _, name = argument.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as problem:
        raise RequestError(f"{what} `{argument}` cannot be imported: {problem}") from None
    except Exception as problem:  # noqa: BLE001 - the user's module may raise anything
        raise RequestError(f"{what} `{argument}`: importing {module} raised {told(problem)}") from None
    function: Callable[..., Any] | None = getattr(found, name, None)
    if not callable(function):
        raise RequestError(f"{what} `{argument}`: {module} has no function {name}")
    return function


def call(argument: str, what: str) -> Any:
    """What `package.module:function` returns. Raises RequestError."""
    function = imported(argument, what)
    try:
        return function()
    except Exception as problem:  # noqa: BLE001 - so may the user's function
        raise RequestError(f"{what} `{argument}` raised {told(problem)}") from None


def told(problem: Exception) -> str:
    """An exception of the user's code with the place it was raised at."""
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {problem}{place}"


def from_function(argument: str) -> Model:
    returned = call(argument, "MODEL")
    match returned:
        case (nn.Module() as module, Mapping() as example):
            wrong = [str(n) for n, v in example.items() if v is not None and not isinstance(v, Tensor)]
            if wrong:
                raise RequestError(f"MODEL `{argument}`: {', '.join(wrong)} in the example is not a tensor")
            given = {str(n): v for n, v in example.items() if v is not None}
            return Model(argument, module.eval(), given)
    raise RequestError(
        f"MODEL `{argument}` must return (module, example): a torch.nn.Module and a mapping of keyword arguments"
    )


def _transformers() -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise RequestError("a Hugging Face folder needs transformers: pip install 'tersor[hf]'") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def from_folder(folder: Path) -> Model:
    """The model of a folder as its configuration names it, from the files of the folder only."""
    if not (folder / "config.json").is_file():
        raise RequestError(f"{folder} is not a Hugging Face folder: it has no config.json")
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        names = [n for n in getattr(config, "architectures", None) or () if hasattr(transformers, n)]
        kind = getattr(transformers, names[0]) if names else transformers.AutoModel
        module, loading = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as problem:  # noqa: BLE001 - whatever is raised here is about the folder
        raise RequestError(f"{folder} cannot be loaded: {_first_line(problem)}") from None
    missing = sorted(loading.get("missing_keys", ()))
    notes: tuple[str, ...] = ()
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes = (f"{len(missing)} weights are not in {folder.name} and were made at random: {named}",)
    tokenizer = read_tokenizer(folder) if has_tokenizer(folder) else None
    model = Model(str(folder), module.eval(), {}, folder, tokenizer, notes)
    return Model(str(folder), model.module, _example(model), folder, tokenizer, notes)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"))


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, with something to pad with. Raises RequestError."""
    try:
        tokenizer = _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # noqa: BLE001 - whatever is raised here is about the folder
        raise RequestError(f"the tokenizer in {folder} cannot be loaded: {_first_line(problem)}") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise RequestError(f"the tokenizer in {folder} has no token to pad with")
    return tokenizer


def _first_line(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else type(problem).__name__


def _example(model: Model) -> dict[str, Tensor]:
    if model.tokenizer is not None:
        return accepted_inputs(model, model.tokenizer(list(TEXTS), padding=True, return_tensors="pt"))
    words = int(getattr(model.module.config, "vocab_size", 0) or 2)
    ids = torch.randint(words, (2, 12), generator=torch.Generator().manual_seed(0))
    return accepted_inputs(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def accepted_inputs(model: Model, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What of a tokenizer's output the model takes; encoder-decoder models decode the same tokens."""
    given = {name: value for name, value in encoded.items() if name in model.accepted}
    config = getattr(model.module, "config", None)
    if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in model.accepted:
        given["decoder_input_ids"] = given["input_ids"]
    return given
