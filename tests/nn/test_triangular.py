"""Small triangular matrices: both ways of each function against torch, values and derivatives."""

import pytest
import torch

from skvdd.nn import triangular
from skvdd.nn.triangular import cholesky, inverse

SIZES = (1, 2, 3, 4, 6)


def lower(size, dtype=torch.float64):
    """Well-conditioned lower triangular matrices (5, 2, size, size)."""
    generator = torch.Generator().manual_seed(size)
    matrix = torch.randn(5, 2, size, size, generator=generator, dtype=dtype).tril(-1)
    diagonal = 0.5 + torch.rand(5, 2, size, generator=generator, dtype=dtype)
    return matrix + torch.diag_embed(diagonal)


def test_some_sizes_are_spelled_out_and_some_are_not():
    assert min(SIZES) <= triangular.SPELT_OUT < max(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_the_factor_of_a_product_is_what_was_multiplied(size):
    factor = lower(size)
    torch.testing.assert_close(cholesky(factor @ factor.mT), factor)


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_undoes_the_matrix(size):
    matrix = lower(size)
    torch.testing.assert_close(inverse(matrix) @ matrix, torch.eye(size).double().expand_as(matrix))
    assert torch.equal(inverse(matrix), inverse(matrix).tril())


@pytest.mark.parametrize("size", SIZES)
def test_derivatives_are_right(size):
    factor = lower(size)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cholesky(x.tril() @ x.tril().mT), factor)
    assert torch.autograd.gradcheck(lambda x: inverse(x.tril()), factor)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_above_the_diagonal_is_of_no_account(size):
    matrix = lower(size)
    full = matrix + torch.ones(size, size).double().triu(1)
    assert torch.equal(inverse(full), inverse(matrix))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bad", [-1.0, torch.nan])
def test_a_matrix_without_a_factor_gives_nan_and_harms_no_other(size, bad):
    factor = lower(size)
    matrix = factor @ factor.mT
    matrix[3, 1, 0, 0] = bad
    result = cholesky(matrix)
    assert result[3, 1].isnan().any()
    torch.testing.assert_close(result[:3], factor[:3])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_is_kept(size, dtype):
    assert inverse(lower(size, dtype)).dtype == dtype
    assert cholesky(torch.eye(size, dtype=dtype)).dtype == dtype


def test_no_matrices_are_no_matrices():
    for size in SIZES:
        assert inverse(torch.zeros(0, size, size)).shape == (0, size, size)
        assert cholesky(torch.zeros(0, size, size)).shape == (0, size, size)
