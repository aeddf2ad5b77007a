"""Fused and blockwise attention against the explicit softmax, in float64."""

import pytest
import torch

from posprobe.models import BLOCK, kernels
from posprobe.models.attention import Scoring, Visibility, attend_blockwise
from posprobe.models.kernels import attend

CAUSAL, FULL = Visibility(), Visibility(causal=False)


def draw(length, *, heads=4, groups=2, width=8, value_width=None, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(length)
    shapes = [(heads, width), (groups, width), (groups, value_width or width)]
    return [
        torch.randn(batch, n, length, d, generator=generator, dtype=torch.float64).to(dtype)
        for n, d in shapes
    ]


def explicit(query, key, value, visibility, scoring):
    """Scores as a matrix, softmax by its definition: the reference, in float64."""
    query, key, value = (x.double() for x in (query, key, value))
    share = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(share, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scoring.scaling
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    i, j = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])[None, :]
    hidden = (j > i) if visibility.causal else torch.zeros_like(j > i)
    if visibility.window is not None:
        hidden |= (i - j).abs() >= visibility.window
    scores = scores.masked_fill(hidden, -torch.inf)
    total = scores.exp().sum(-1)
    if scoring.sink_logit is not None:
        total = total + scoring.sink_logit.double().exp()[None, :, None]
    return scores.exp() / total.unsqueeze(-1) @ value, total.log()


def assert_equal(case, *, tolerance=1e-11):
    expected = explicit(*case)
    for got, wanted in zip(attend(*case), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.fixture(params=["fused", "blockwise"])
def path(request, monkeypatch):
    """Each of the two paths; the fused one must really be in use."""
    if request.param == "blockwise":
        monkeypatch.setattr(kernels, "fused_kernel", lambda *_: None)
    else:
        (kernel,) = kernels.KERNELS["cpu"]
        for mask in kernel.masks:
            found = kernels.fused_kernel(torch.device("cpu"), torch.float64, 8, mask)
            assert found is kernel
    return request.param


LENGTHS = [1, 2, 9, 40, BLOCK, BLOCK + 1, 2 * BLOCK + 37]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [None, 1, 2, 9, BLOCK, BLOCK + 1, 10_000])
def test_attention_is_the_explicit_softmax(causal, window):
    for length in LENGTHS:
        assert_equal((*draw(length, batch=1), Visibility(causal, window), Scoring(0.3)))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_query_heads_read_the_key_head_of_their_group(groups, window):
    assert_equal((*draw(33, groups=groups), Visibility(window=window), Scoring(0.7)))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("visibility", [CAUSAL, Visibility(window=5), FULL])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_learned_sink_and_softcap(visibility, softcap):
    sink = torch.tensor([-3.0, 0.0, 2.0, 30.0], dtype=torch.float64)
    case = draw(40)
    assert_equal((*case, visibility, Scoring(1.1, softcap, sink)))
    without = attend(*case, visibility, Scoring(1.1, softcap))[1]
    assert (attend(*case, visibility, Scoring(1.1, softcap, sink))[1] > without).all()


def test_values_may_be_wider_or_narrower_than_keys():
    assert_equal((*draw(70, value_width=3), CAUSAL, Scoring(0.3)))
    assert_equal((*draw(70, value_width=20), Visibility(window=9), Scoring(0.3)))


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("size", [300.0, 3000.0])
def test_huge_scores_do_not_overflow(size):
    query, key, value = draw(40)
    output, normalizer = attend(query * size, key, value, CAUSAL, Scoring(1.0))
    scores = Scoring(1.0).matrix(query * size, key)
    hidden = ~CAUSAL.mask(torch.arange(40), torch.arange(40))
    expected = scores.masked_fill(hidden, -torch.inf).logsumexp(-1)
    torch.testing.assert_close(normalizer, expected, rtol=1e-12, atol=0)
    assert output.isfinite().all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_lower_precision_keeps_a_float32_normalizer(dtype, tolerance):
    for visibility in (CAUSAL, Visibility(window=9)):
        case = (*draw(300, dtype=dtype), visibility, Scoring(0.3))
        output, normalizer = attend(*case)
        assert output.dtype == dtype
        assert normalizer.dtype == torch.float32
        assert_equal(case, tolerance=tolerance)


def test_adding_a_constant_to_the_scores_of_a_query_moves_the_normalizer_alone():
    query, key, value = draw(40, groups=4)
    one = torch.ones_like(key[..., :1])
    constant = torch.randn(2, 4, 40, 1, dtype=torch.float64)
    moved = torch.cat([query, constant], -1), torch.cat([key, one], -1)
    output, normalizer = attend(query, key, value, CAUSAL, Scoring(0.5))
    other, shifted = attend(*moved, value, CAUSAL, Scoring(0.5))
    torch.testing.assert_close(other, output)
    torch.testing.assert_close(shifted - normalizer, 0.5 * constant.squeeze(-1))


def test_key_range_holds_exactly_the_keys_that_some_query_sees():
    for n_keys in (1, 7, 20):
        keys = torch.arange(n_keys)
        for window in (None, 1, 2, 5, 50):
            for causal in (True, False):
                visibility = Visibility(causal, window)
                for first in range(n_keys):
                    for last in range(first + 1, n_keys + 1):
                        seen = visibility.mask(keys[first:last], keys).any(0).nonzero().flatten()
                        bounds = int(seen[0]), int(seen[-1]) + 1
                        assert visibility.key_range(first, last, n_keys) == bounds


def test_paired_scores_are_the_diagonal_of_the_matrix():
    query, key, _ = draw(20)
    for scoring in (Scoring(0.3), Scoring(0.3, softcap=1.5)):
        diagonal = scoring.matrix(query, key).diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(scoring.paired(query, key), diagonal)


def test_head_selection_takes_its_own_learned_sinks():
    sink = torch.arange(4.0)
    assert Scoring(1.0, None, sink).of_heads([3, 1]).sink_logit.tolist() == [3.0, 1.0]
    assert Scoring(1.0).of_heads([3, 1]).sink_logit is None


def test_no_mask_is_ever_a_square(monkeypatch):
    length, sizes = 4 * BLOCK, []
    plain = Visibility.mask

    def spy(self, queries, keys):
        sizes.append(len(queries) * len(keys))
        return plain(self, queries, keys)

    monkeypatch.setattr(Visibility, "mask", spy)
    case = draw(length, batch=1)
    attend(*case, Visibility(window=9), Scoring(0.3))
    attend_blockwise(*case, CAUSAL, Scoring(0.3))
    assert max(sizes) <= BLOCK * 2 * BLOCK
