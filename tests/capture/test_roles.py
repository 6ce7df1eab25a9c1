"""Roles by path, written down from the architectures' own names; the code under test never sees a name."""

from __future__ import annotations

import pytest
from tests.captured import MODELS

ATTENTION = ("attention.query", "attention.key", "attention.value", "attention.output")
FFN = ("ffn.up", "ffn.down")


def block(prefix, names, roles):
    return {f"{prefix}{name}": role for name, role in zip(names, roles, strict=True)}


def bert(prefix=""):
    table = {
        f"{prefix}embeddings.word_embeddings": "embedding.token",
        f"{prefix}embeddings.position_embeddings": "embedding.position",
        f"{prefix}embeddings.token_type_embeddings": "embedding.token_type",
        f"{prefix}embeddings.LayerNorm": "norm.embedding",
        f"{prefix}pooler.dense": "head.pooler",
    }
    for i in range(2):
        names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        names += ("intermediate.dense", "output.dense", "attention.output.LayerNorm", "output.LayerNorm")
        table |= block(f"{prefix}encoder.layer.{i}.", names, (*ATTENTION, *FFN, "norm.attention", "norm.ffn"))
        table[f"{prefix}encoder.layer.{i}.attention.self.attention"] = "attention.core"
    return table


def distilbert():
    table = {
        "embeddings.word_embeddings": "embedding.token",
        "embeddings.position_embeddings": "embedding.position",
        "embeddings.LayerNorm": "norm.embedding",
    }
    names = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2")
    names += ("sa_layer_norm", "output_layer_norm", "attention.attention")
    roles = (*ATTENTION, *FFN, "norm.attention", "norm.ffn", "attention.core")
    return table | block("transformer.layer.0.", names, roles) | block("transformer.layer.1.", names, roles)


def albert():
    layer = "encoder.albert_layer_groups.0.albert_layers.0."
    names = ("attention.query", "attention.key", "attention.value", "attention.dense", "ffn", "ffn_output")
    names += ("attention.LayerNorm", "full_layer_layer_norm", "attention.attention")
    return {
        "embeddings.word_embeddings": "embedding.token",
        "embeddings.position_embeddings": "embedding.position",
        "embeddings.token_type_embeddings": "embedding.token_type",
        "embeddings.LayerNorm": "norm.embedding",
        "encoder.embedding_hidden_mapping_in": "embedding.projection",
        "pooler": "head.pooler",
    } | block(layer, names, (*ATTENTION, *FFN, "norm.attention", "norm.ffn", "attention.core"))


def gpt2():
    table = {"transformer.wte": "embedding.token", "transformer.wpe": "embedding.position"}
    table["transformer.ln_f"] = "norm.final"
    for i in range(2):
        names = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2", "attn.attention")
        roles = ("attention.qkv", "attention.output", *FFN, "norm.attention", "norm.ffn", "attention.core")
        table |= block(f"transformer.h.{i}.", names, roles)
    return table


def llama():
    table = {"model.embed_tokens": "embedding.token", "model.norm": "norm.final", "lm_head": "lm_head"}
    for i in range(2):
        names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")
        names += ("mlp.up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm", "self_attn.attention")
        roles = (*ATTENTION, "ffn.gate", *FFN, "norm.attention", "norm.ffn", "attention.core")
        table |= block(f"model.layers.{i}.", names, roles)
    return table


def t5():
    table = {"shared": "embedding.token"}
    cross = tuple(f"cross_{role}" for role in ATTENTION)
    for side, ffn in (("encoder", 1), ("decoder", 2)):
        layer = f"{side}.block.0.layer."
        names = ("q", "k", "v", "o", "relative_attention_bias", "attention")
        table |= block(f"{layer}0.SelfAttention.", names, (*ATTENTION, "embedding.relative_bias", "attention.core"))
        table |= {f"{layer}0.layer_norm": "norm.attention", f"{layer}{ffn}.layer_norm": "norm.ffn"}
        table |= block(f"{layer}{ffn}.DenseReluDense.", ("wi", "wo"), FFN)
        table[f"{side}.final_layer_norm"] = "norm.final"
    names = ("q", "k", "v", "o", "attention")
    table |= block("decoder.block.0.layer.1.EncDecAttention.", names, (*cross, "cross_attention.core"))
    return table | {"decoder.block.0.layer.1.layer_norm": "norm.cross_attention"}


def torch_encoder():
    table = {"embed": "embedding.token", "head": "head.classifier"}
    for i in range(2):
        names = ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
        roles = ("attention.qkv", "attention.output", *FFN, "norm.attention", "norm.ffn", "attention.core")
        table |= block(f"encoder.layers.{i}.", (*names, "self_attn.attention"), roles)
    return table


def recurrent(head, role, suffixes=("l0", "l1")):
    table = {"embed": "embedding.token", head: role}
    for suffix in suffixes:
        table |= {f"rnn.weight_ih_{suffix}": "recurrent.input", f"rnn.weight_hh_{suffix}": "recurrent.hidden"}
    return table


def hand_gpt():
    table = {"tokens": "embedding.token", "positions": "embedding.position", "norm": "norm.final"}
    for i in range(2):
        roles = ("attention.qkv", "attention.output", *FFN, "norm.attention", "norm.ffn")
        table |= block(f"blocks.{i}.", ("qkv", "proj", "up", "down", "ln1", "ln2"), roles)
    return table


EXPECTED = {
    "bert": bert(),
    "bert_classifier": bert("bert.") | {"classifier": "head.classifier"},
    "roberta": bert(),
    "distilbert": distilbert(),
    "albert": albert(),
    "gpt2": gpt2(),
    "llama": llama(),
    "t5": t5(),
    "torch_encoder": torch_encoder(),
    "torch_encoder_prenorm": torch_encoder(),
    "multihead": {
        "embed": "embedding.token",
        "attention.in_proj_weight": "attention.qkv",
        "attention.out_proj": "attention.output",
        "attention.attention": "attention.core",
        "norm": "norm.attention",
    },
    "lstm_lm": recurrent("decoder", "lm_head"),
    "lstm_tied": recurrent("embed", "embedding.token"),
    "gru_lm": recurrent("decoder", "lm_head"),
    "rnn_lm": recurrent("decoder", "lm_head"),
    "bilstm": recurrent("out", "head.classifier", ("l0", "l0_reverse")),
    "hand_gpt": hand_gpt(),
}


@pytest.mark.parametrize("name", [m for m in MODELS if m.values[0] in EXPECTED])
def test_every_role(captured, name):
    _, _, program = captured(name)
    found = {site.path: site.role for site in program.sites if site.kind != "bias"}
    assert found == EXPECTED[name]
    assert all(site.why for site in program.sites)


@pytest.mark.parametrize("name", [m for m in MODELS if m.values[0] in EXPECTED])
def test_a_bias_has_the_role_of_its_owner(captured, name):
    _, _, program = captured(name)
    for site in program.sites:
        if site.kind != "bias" or (name, site.path) == ("lstm_tied", "decoder.bias"):
            continue
        path = site.path.removesuffix(".bias").replace("in_proj_bias", "in_proj_weight")
        owner = EXPECTED[name].get(path, "recurrent")
        assert site.role == f"{owner}.bias"


@pytest.mark.parametrize("name", ["lstm_tied"])
def test_the_bias_of_a_tied_head_belongs_to_the_head(captured, name):
    _, _, program = captured(name)
    assert {s.path: s.role for s in program.sites}["decoder.bias"] == "lm_head.bias"


def test_roles_can_be_set_by_path():
    from tests.zoo import lstm_lm

    from tersor.compiler.capture import capture

    program = capture(*lstm_lm(), roles={"dec*": "head.special", "rnn.**": "memory"})
    roles = {site.path: site.role for site in program.sites}
    assert roles["decoder"] == "head.special"
    assert roles["rnn.weight_hh_l1"] == "memory"
    assert roles["embed"] == "embedding.token"
