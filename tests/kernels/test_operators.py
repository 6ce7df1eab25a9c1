"""The kernels as torch operators: contract, export, gradients, threads, cache, and distrust."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from kernel_oracle import FASTEST, IN_PAIRS, RUNNABLE, WIDTHS, error, expected, narrowed, random_matrix
from torch.nn import functional as F

from tersor.backends.numba import ops, selfcheck
from tersor.backends.numba.features import ENVIRONMENT, detect
from tersor.backends.numba.linear import QuantizedLinear
from tersor.backends.numba.reference import activate
from tersor.compiler.errors import RequestError


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_linear_contract(activation: str) -> None:
    module = random_matrix(20, 96, 8, shifted=False).module(activation=activation)
    x = torch.randn(2, 3, 96, requires_grad=True)
    torch.library.opcheck(ops.linear, (x, module.codes, module.scale, module.shift, module.bias, *module._constants))


@pytest.mark.parametrize("level", WIDTHS)
def test_norm_agrees_with_torch(level: str) -> None:
    for columns in (64, 384, 50):
        x, other, weight, bias = torch.randn(3, 5, columns), torch.randn(3, 5, columns), *torch.randn(2, columns)
        wanted = F.layer_norm((x + other).double(), (columns,), weight.double(), bias.double(), 1e-5)
        actual = ops.layer_norm(x, other, weight, bias, 1e-5, level)
        assert error(actual, wanted.numpy()) < 1e-5
        alone = F.layer_norm(x.double(), (columns,), weight.double(), bias.double(), 1e-5)
        assert error(ops.layer_norm(x, None, weight, bias, 1e-5, level), alone.numpy()) < 1e-5


def test_norm_contract_and_gradient() -> None:
    tensors = [torch.randn(2, 32, requires_grad=True), torch.randn(2, 32, requires_grad=True)]
    tensors += [torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)]
    torch.library.opcheck(ops.layer_norm, (*tensors, 1e-5, FASTEST))
    x, other, weight, bias = tensors
    actual = torch.autograd.grad(ops.layer_norm(*tensors, 1e-5, FASTEST).square().sum(), tensors)
    wanted = torch.autograd.grad(F.layer_norm(x + other, (32,), weight, bias, 1e-5).square().sum(), tensors)
    for a, w in zip(actual, wanted, strict=True):
        torch.testing.assert_close(a, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_gradient_is_that_of_the_dense_linear(activation: str) -> None:
    module = random_matrix(70, 96, 4, 32).module(activation=activation)
    x = torch.randn(5, 96, requires_grad=True)
    grad = torch.randn(5, 70)
    module(x).backward(grad)
    other = x.detach().clone().requires_grad_()
    before = module.with_activation("none")(x).detach() if activation != "none" else module(x).detach()
    # Straight through the rounding: the derivative of the activation is taken at the value the kernel computed.
    dense = other @ module.dense().T
    activate(dense + (before - dense).detach(), activation).backward(grad)
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_export_keeps_the_operator() -> None:
    module = random_matrix(20, 96, 8).module()
    exported = torch.export.export(module, (torch.randn(4, 96),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert ops.linear in targets
    x = torch.randn(9, 96)
    assert torch.equal(exported.module()(x), module(x))


def test_state_goes_through_a_state_dict() -> None:
    one, other = (random_matrix(20, 96, 8, seed=seed).module() for seed in (1, 2))
    x = torch.randn(4, 96)
    assert not torch.equal(one(x), other(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("shape", [(256, 300, 512), (16, 3000, 1024)])
def test_threads_change_nothing(shape: tuple[int, int, int]) -> None:
    """Rows are split where there are many, panels else; either way every row is computed alike."""
    count, rows, columns = shape
    module = random_matrix(rows, columns, 8).module()
    x = torch.randn(count, columns)
    alone = module(x)
    torch.set_num_threads(3)
    try:
        assert torch.equal(module(x), alone)
    finally:
        torch.set_num_threads(1)


def test_callers_on_several_threads() -> None:
    modules = [random_matrix(130, 200, bits).module(activation_group=group) for bits in (8, 4) for group in (0, 64)]
    inputs = [torch.randn(n, 200) for n in (1, 5, 40, 90)]
    alone = [[module(x) for x in inputs] for module in modules]

    def all_of_them(_: int) -> bool:
        return all(
            torch.equal(module(x), wanted)
            for module, row in zip(modules, alone, strict=True)
            for x, wanted in zip(inputs, row, strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_of_them, range(40)))


_FRESH = """
import sys
import ctypes
from tersor.backends.numba.build import driver, kernel_address
from tersor.backends.numba.microkernels import LinearSpec
kernel_address(LinearSpec("generic", 8, "row", False), "glue_multiply")
driver("generic").run(0, 0, 0, 0)
print("numba" in sys.modules)
"""


def test_compiled_once_for_all_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "TERSOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.run([sys.executable, "-c", _FRESH], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout.split() for run in runs] == [["True"], ["False"]]


def test_level_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "generic")
    assert detect().name == "generic"
    assert random_matrix(20, 96, 8).module().level == "generic"
    monkeypatch.setenv(ENVIRONMENT, "avx9")
    with pytest.raises(RequestError, match="no CPU level is called 'avx9'"):
        detect()


def test_a_kernel_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every level but the last distrusted, then with all of them."""
    matrix = random_matrix(20, 96, 8)
    x = torch.randn(4, 96)
    monkeypatch.setattr(selfcheck, "_linear_agrees", lambda level, *_: level == "generic")
    with pytest.warns(UserWarning, match="disagrees with its reference"):
        module = matrix.module(activation_group=0)
    assert module.level == "generic"
    assert error(module(x), expected(matrix, x, 0)) < 1e-5
    monkeypatch.setattr(selfcheck, "_linear_agrees", lambda *_: False)
    with pytest.warns(UserWarning, match="disagrees|trusted"):
        module = matrix.module(activation="relu")
    assert module.level is None
    torch.testing.assert_close(module(x), F.relu(F.linear(x, module.dense(), matrix.bias)))


def test_the_self_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layout with one code off by one is noticed."""
    pack = selfcheck.pack_codes

    def wrong(codes: torch.Tensor, *rest: object) -> torch.Tensor:
        codes = codes.clone()
        codes[0, 0] ^= 1
        return pack(codes, *rest)  # type: ignore[arg-type]

    layout = random_matrix(20, 96, 8, shifted=False).module().layout
    assert selfcheck.linear_agrees(detect(), layout, "none")
    monkeypatch.setattr(selfcheck, "pack_codes", wrong)
    assert not selfcheck.linear_agrees(detect(), layout, "none")


def test_joined_linears_compute_each_part() -> None:
    modules = [random_matrix(rows, 96, 8, seed=rows, shifted=False).module() for rows in (64, 128, 50)]
    joined = QuantizedLinear.joined(modules)
    x = torch.randn(7, 96)
    assert joined is not None
    assert torch.equal(joined(x), torch.cat([module(x) for module in modules], dim=-1))
    assert QuantizedLinear.joined(modules[::-1]) is None  # 50 outputs do not fill a panel


@pytest.mark.parametrize("level", RUNNABLE)
def test_where_narrow_codes_cannot_be_trusted_they_are_taken_as_any(
    level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "_linear_agrees", lambda *key: not key[5])
    matrix = narrowed(random_matrix(20, 96, 8, shifted=False), 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        module = matrix.module(level=level)
    assert ["room=1" in str(warning.message) for warning in told] == [True] * (level in IN_PAIRS)
    assert module.layout.room == 0
    x = torch.randn(5, 96)
    assert error(module(x), expected(matrix, x, 64)) < 1e-5
