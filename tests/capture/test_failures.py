"""What cannot be captured is said in one place, with the cause and what to try."""

from __future__ import annotations

import pytest
import torch
from tests.zoo import VOCAB, ids
from torch import nn

from tersor.compiler.capture import capture
from tersor.compiler.errors import CaptureError, CompilerBug


class CellLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.cell, self.out = nn.Embedding(VOCAB, 8), nn.LSTMCell(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        h = c = x.new_zeros(x.shape[0], 8)
        for step in range(x.shape[1]):
            h, c = self.cell(x[:, step], (h, c))
        return self.out(h)


class Stateful(nn.Module):
    """A language model that goes on from a state, given as torch has it or with the batch first."""

    def __init__(self, layers, batch_first):
        super().__init__()
        self.layers, self.turned = layers, batch_first
        self.embed, self.out = nn.Embedding(VOCAB, 8), nn.Linear(12, VOCAB)
        self.rnn = nn.LSTM(8, 12, layers, batch_first=True)

    def forward(self, tokens, h, c):
        if self.turned:
            h, c = (s.view(-1, self.layers, 12).transpose(0, 1).contiguous() for s in (h, c))
        y, (h, c) = self.rnn(self.embed(tokens), (h, c))
        return self.out(y), *((s.transpose(0, 1).flatten(1) for s in (h, c)) if self.turned else (h, c))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 6, batch_first=True, bidirectional=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y, _ = self.rnn(packed)
        return nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0]


class PackedClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.packed, self.out = nn.Embedding(VOCAB, 8), Packed(), nn.Linear(12, 3)

    def forward(self, input_ids, lengths):
        return self.out(self.packed(self.embed(input_ids), lengths).amax(1))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = DataDependent()

    def forward(self, input_ids):
        return self.inner(input_ids.float())


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 3 else -x


class ModeDependent(nn.Module):
    """Another function in train mode than in eval mode."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(VOCAB, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.out(x.mean(1) if self.training else x.amax(1))


PACKED = {"input_ids": ids(2, 10), "lengths": torch.tensor([10, 6])}


def test_a_loop_over_time_is_found_and_named():
    with pytest.raises(CaptureError, match=r"dimension 1 of input 'input_ids' became the constant 10.*opaque=\["):
        capture(CellLoop(), {"input_ids": ids()})


def test_a_branch_on_values_names_the_submodule_and_the_remedy():
    with pytest.raises(
        CaptureError, match=r"cannot be captured in inner \(DataDependent\).*What to try.*opaque="
    ) as error:
        capture(Branching(), {"input_ids": ids()})
    assert len(str(error.value)) < 800
    assert "Traceback" not in str(error.value)


def test_packed_sequences_fail_with_a_remedy_that_works():
    model = PackedClassifier().eval()
    with pytest.raises(CaptureError, match="opaque="):
        capture(model, PACKED)
    program = capture(model, PACKED, opaque=["packed"])
    ours = program.callable().eval()
    inputs = {"input_ids": ids(3, 7), "lengths": torch.tensor([3, 7, 1])}
    assert torch.equal(ours(**inputs), model(**inputs))
    ours(**inputs).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())
    roles = {site.path: (site.kind, site.readers) for site in program.sites}
    assert roles["packed.rnn.weight_hh_l0"] == ("other", ())
    assert roles["out"][0] == "linear"


def test_an_opaque_module_in_the_original_is_left_as_it_was():
    model = PackedClassifier().eval()
    capture(model, PACKED, opaque=["packed"], copy=False)
    assert "forward" not in model.packed.__dict__
    model(**PACKED)


@pytest.mark.parametrize("path", ["no.such", "out.weight"])
def test_an_unknown_opaque_path_is_named(path):
    with pytest.raises(CaptureError, match=f"opaque='{path}': the model has no such submodule"):
        capture(PackedClassifier(), PACKED, opaque=[path])


def test_a_model_that_branches_on_its_mode_is_captured_in_eval_mode():
    model = ModeDependent().eval()
    for check in (True, False):
        program = capture(model, {"input_ids": ids()}, check=check)
        assert torch.equal(program.callable().eval()(ids(3, 5)), model(ids(3, 5)))
        assert program.notes
        assert "captured in eval mode" in program.notes[0]


def test_the_model_keeps_its_mode_and_config(captured):
    from tests.zoo import bert

    model, example = bert()
    model.encoder.eval()
    model.train()
    model.pooler.eval()
    model.config.use_cache = True
    capture(model, example, copy=False)
    assert model.training
    assert not model.pooler.training
    assert model.config.use_cache is True


@pytest.mark.parametrize("example", [{}, {"input_ids": [1, 2]}])
def test_an_example_without_tensors_is_refused(example):
    with pytest.raises(CaptureError, match="the example"):
        capture(ModeDependent(), example)


def test_an_argument_that_forward_does_not_have_is_refused():
    with pytest.raises(CaptureError, match=r"does not fit ModeDependent.forward: missing .*input_ids"):
        capture(ModeDependent(), {"tokens": ids()})


def test_an_example_of_size_one_still_gives_a_dynamic_graph():
    from tests.zoo import lstm_lm

    model, _ = lstm_lm()
    ours = capture(model, {"input_ids": ids(1, 1)}).callable().eval()
    assert torch.equal(ours(ids(3, 9)), model(ids(3, 9)))


def test_verify_sees_a_changed_graph():
    from tests.zoo import lstm_lm

    model, example = lstm_lm()
    program = capture(model, example)
    program.verify(model)
    with torch.no_grad():
        program.module.get_submodule("decoder").weight[0, 0] += 1e-3
    with pytest.raises(CompilerBug, match="disagree on the example"):
        program.verify(model)


def test_planning_needs_no_weights():
    from tests.zoo import bert

    model, example = bert()
    program = capture(model.to("meta"), {k: v.to("meta") for k, v in example.items()}, copy=False, check=False)
    assert sum(site.bytes for site in program.sites) == sum(p.numel() * 4 for p in model.parameters())
    roles = {site.path: site.role for site in program.sites}
    assert roles["encoder.layer.1.attention.self.query"] == "attention.query"
    assert roles["embeddings.word_embeddings"] == "embedding.token"


def test_text_does_not_depend_on_the_tracer():
    from tests.zoo import lstm_lm

    from tersor.compiler.text import to_text

    expected = (
        "input %input_ids\n"
        "%1 = embed(%input_ids)  # embedding.token\n"
        "%2 = rnn(%1)  # recurrent.hidden\n"
        "%3 = getitem(%2, 0)\n"
        "%4 = decoder(%3)  # lm_head\n"
        "return [%4]\n"
    )
    assert to_text(capture(*lstm_lm())) == expected


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_recurrent_state_with_its_layers_first(layers, batch):
    """The remedy that the message names works, and carries a state over from call to call."""
    tokens, state = ids(batch, 6), torch.randn(layers, batch, 12)
    with pytest.raises(CaptureError, match=r"'h' of shape .* is a state of rnn, .*h\.view\(-1, .*, 12\)\.transpose"):
        capture(Stateful(layers, batch_first=False), {"tokens": tokens, "h": state, "c": state})
    model, flat = Stateful(layers, batch_first=True).eval(), torch.randn(batch, layers * 12)
    program = capture(model, {"tokens": tokens, "h": flat, "c": flat})  # one tensor for two arguments
    first = [ids(4, 7), torch.randn(4, layers * 12), torch.randn(4, layers * 12)]
    ours = program.callable().eval()
    with torch.no_grad():
        for _ in range(2):
            found, expected = ours(*first), model(*first)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            first[1:] = found[1:]


def test_a_sequence_as_wide_as_a_state_is_no_state():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.rnn = nn.Embedding(VOCAB, 12), nn.GRU(12, 12, 2, batch_first=True)

        def forward(self, tokens, memory):
            return self.rnn(self.embed(tokens) + memory)[0]

    assert capture(Attending(), {"tokens": ids(2, 6), "memory": torch.randn(2, 6, 12)}).notes == ()


def test_a_group_of_tensors_is_answered_with_parameters_of_their_own():
    state = (torch.randn(2, 2, 12), torch.randn(2, 2, 12))
    with pytest.raises(CaptureError, match=r"in groups: state; .* forward\(tokens, h, c\)"):
        capture(Stateful(2, batch_first=True), {"tokens": ids(), "state": state})
