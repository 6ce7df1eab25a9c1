"""The captured module is called as the original was."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersor.compiler.callable import CompiledModule, Outputs
from tersor.compiler.capture import capture
from tersor.compiler.errors import RequestError
from tersor.compiler.signature import Constant, Group, Input, Limit, Signature, TensorAt


def eval_both(captured, name):
    model, example, program = captured(name)
    return model.eval(), example, program.callable().eval()


@pytest.mark.parametrize("name", ["bert"])
def test_named_outputs_keep_their_class(captured, name):
    model, example, ours = eval_both(captured, name)
    expected, found = model(**example), ours(**example)
    assert type(found) is type(expected)
    assert torch.equal(found[0], found.last_hidden_state)
    plain = ours(**example, return_dict=False)
    assert isinstance(plain, tuple)
    assert torch.equal(plain[1], expected.pooler_output)


@pytest.mark.parametrize("name", ["bilstm"])
def test_plain_outputs_keep_their_form(captured, name):
    model, example, ours = eval_both(captured, name)
    assert list(ours(**example)) == ["logits"]
    assert torch.equal(ours(**example)["logits"], model(**example)["logits"])


@pytest.mark.parametrize("name", ["bert"])
def test_absent_inputs_are_filled_in(captured, name):
    model, example, ours = eval_both(captured, name)
    ids = example["input_ids"]
    assert torch.equal(ours(input_ids=ids).last_hidden_state, model(input_ids=ids).last_hidden_state)
    assert torch.equal(ours(ids, None).last_hidden_state, model(ids).last_hidden_state)


class MaskIsNotOnes(torch.nn.Module):
    """Without a mask it does something else than with a mask of ones."""

    def forward(self, input_ids, attention_mask=None):
        return input_ids.float() * (3 if attention_mask is None else attention_mask)


def test_a_default_that_would_change_the_result_is_not_offered():
    example = {"input_ids": torch.full((2, 4), 7), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    program = capture(MaskIsNotOnes(), example)
    assert [i.default for i in program.signature.inputs] == [None, None]
    with pytest.raises(TypeError, match="input 'attention_mask' is missing"):
        program.callable()(example["input_ids"])


@pytest.mark.parametrize("name", ["bert"])
def test_positional_arguments_follow_the_original_order(captured, name):
    model, example, ours = eval_both(captured, name)
    ids, mask, types = example["input_ids"], example["attention_mask"], torch.ones_like(example["input_ids"])
    assert torch.equal(ours(ids, mask, types).last_hidden_state, model(ids, mask, types).last_hidden_state)


@pytest.mark.parametrize("name", ["bert"])
def test_harmless_extras_are_ignored_and_others_refused(captured, name):
    _, example, ours = eval_both(captured, name)
    ours(**example, return_dict=True, output_attentions=False, inputs_embeds=None, use_cache=False)
    with pytest.raises(
        TypeError, match=r"no input 'output_attentions'; it takes input_ids, attention_mask \(optional\)"
    ):
        ours(**example, output_attentions=True)
    with pytest.raises(TypeError, match="input 'input_ids' is missing"):
        ours(attention_mask=example["attention_mask"])
    with pytest.raises(TypeError, match="'input_ids' is given twice"):
        ours(example["input_ids"], input_ids=example["input_ids"])
    with pytest.raises(TypeError, match="too many positional"):
        ours(*[example["input_ids"]] * 40)


@pytest.mark.parametrize("name", ["bert"])
def test_wrong_rank_is_a_request_error(captured, name):
    _, example, ours = eval_both(captured, name)
    with pytest.raises(RequestError, match=r"input 'input_ids' has shape \(10,\); the model takes 2 dimensions"):
        ours(input_ids=example["input_ids"][0])


@pytest.mark.parametrize(
    ("name", "limit", "table"),
    [
        ("bert", 64, "rows of embeddings.position_embeddings"),
        pytest.param("roberta", 62, "rows of embeddings.position_embeddings", marks=pytest.mark.slow),
        ("gpt2", 64, "rows of transformer.wpe"),
        ("hand_gpt", 48, "rows of positions"),
    ],
)
def test_a_longer_text_than_the_position_table_is_a_request_error(captured, name, limit, table):
    model, _, ours = eval_both(captured, name)
    fits, too_long = (torch.full((1, n), 7) for n in (limit, limit + 1))
    assert ours(input_ids=fits) is not None
    with pytest.raises(RequestError, match=f"{limit + 1} tokens is longer than the {limit} {table}"):
        ours(input_ids=too_long)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=too_long)


@pytest.mark.parametrize("name", ["gpt2"])
def test_deepcopy_train_and_state_dict(captured, name):
    _, example, ours = eval_both(captured, name)
    twin = copy.deepcopy(ours)
    assert torch.equal(twin(**example).logits, ours(**example).logits)
    assert twin.train().training
    assert not torch.equal(twin(**example).logits, ours(**example).logits)
    state = {key: torch.zeros_like(value) for key, value in ours.state_dict().items()}
    twin.eval().load_state_dict(state)
    assert twin(**example).logits.abs().max() == 0
    assert ours(**example).logits.abs().max() > 0


@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # torch, of nn.LSTM's list of its weights
@pytest.mark.parametrize("name", ["gpt2", "lstm_lm"])
def test_it_can_be_exported_again(captured, name):
    from tersor.compiler.recurrence import RECURRENT
    from tersor.compiler.shapes import shapes_only

    model, example, ours = eval_both(captured, name)
    with torch.no_grad(), shapes_only(RECURRENT):
        exported = torch.export.export(ours, (), example, strict=False).module()
    assert torch.equal(exported(**example)[0], model(**example)[0])


@pytest.mark.parametrize("name", ["hand_gpt"])
def test_it_can_be_captured_again(captured, name):
    model, example, ours = eval_both(captured, name)
    again = capture(ours, example)
    assert again.notes == ()
    longer = {"input_ids": torch.full((1, 30), 9)}
    assert torch.equal(again.callable().eval()(**longer), model(**longer))
    assert {s.role for s in again.sites} == {s.role for s in captured(name)[2].sites}


outputs = st.recursive(
    st.builds(TensorAt, st.integers(0, 9)) | st.builds(Constant, st.none() | st.booleans() | st.integers() | st.text()),
    lambda inner: st.lists(inner, max_size=3).map(lambda items: Group("tuple", tuple(items))),
)
signatures = st.builds(
    Signature,
    st.lists(st.builds(Input, st.text(), st.just("int64"), st.integers(0, 4), st.none() | st.text())).map(tuple),
    outputs,
    st.lists(st.text()).map(tuple),
    st.lists(st.builds(Limit, st.text(), st.integers(0, 3), st.integers(1), st.text())).map(tuple),
)


@given(signatures)
def test_a_signature_survives_json(signature):
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


@pytest.mark.parametrize("name", ["hand_gpt"])
def test_only_transformers_output_classes_are_ever_imported(captured, name):
    _, example, program = captured(name)

    def ending_in(kind: str) -> CompiledModule:
        signature = Signature(program.signature.inputs, Group(kind, (TensorAt(0),), ("logits",)))
        return CompiledModule(program.module, signature)

    for kind in ("os:system", "transformersevil:X", "transformersevil.utils:X"):
        with pytest.raises(RequestError, match="transformers"):
            ending_in(kind)
    module = ending_in("transformers.utils:logging")  # imported by the first call only
    with pytest.raises(RequestError, match="not a transformers output class"):
        module(**example)


def test_without_transformers_outputs_are_still_named():
    out = Outputs(logits=1, loss=None)
    assert (out.logits, out["loss"], out[0], out.to_tuple()) == (1, None, 1, (1, None))
    with pytest.raises(AttributeError, match="no output 'hidden'; there are logits, loss"):
        _ = out.hidden


def test_calling_does_not_need_transformers():
    code = "import sys, tersor.compiler.capture, tersor.compiler.callable; sys.exit('transformers' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}).returncode == 0
