"""What is read off the scores, and the mask counterfactual, by brute force."""

import types

import pytest
import torch

from posprobe.errors import ModelError
from posprobe.models import NO_INTERVENTION, Intervention, Observation, Observer
from posprobe.models.attention import Scoring, Visibility
from posprobe.models.observation import observed_attention, observing
from posprobe.models.scores import observe_scores

T, HEADS, GROUPS, WIDTH = 30, 4, 2, 8
WINDOW = 6
PREFIXES = (1, 2, 5, 11, T - WINDOW)
SINK = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
LAYER = types.SimpleNamespace(layer_idx=1)


def draw(length=T):
    generator = torch.Generator().manual_seed(length)
    return [
        torch.randn(2, heads, length, WIDTH, generator=generator, dtype=torch.float64)
        for heads in (HEADS, GROUPS, GROUPS)
    ]


def scores_of(query, key, scaling=0.5, softcap=None):
    scores = scaling * query @ key.repeat_interleave(HEADS // GROUPS, 1).transpose(-1, -2)
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def observe(observation, visibility, *, cut="none", sink=None, softcap=None, length=T):
    """What `observed_attention` emits of one layer, and its explicit scores."""
    seen = {}
    query, key, value = draw(length)
    observer = Observer(
        lambda name, layer, tensor: seen.update({name: tensor}),
        observation,
        Intervention(cut_sink={"none": None, "all": "all", "some": ((1, 2), (0, 1))}[cut]),
    )
    keywords = dict(scaling=0.5, softcap=softcap, s_aux=sink)
    with observing(observer):
        observed_attention(LAYER, query, key, value, visibility, **keywords)
    assert observer.layers == [1]
    assert observer.visibilities == {1: visibility}
    return seen, scores_of(query, key, softcap=softcap)


def counterfactual(scores, prefix, row, visibility, *, cut=False, sink=None, apart=True):
    """Normalizer of one late row under the mask of a row `row` behind `prefix` tokens, and body.

    `scores` (key,) are those of the late row. The mask of position p = prefix + row shows the keys
    0..p, within the window; their counterparts in the late row are key 0 for key 0, and keys at the
    same distance for the others.
    """
    length = len(scores)
    late = length - WINDOW + row
    position = prefix + row
    body, whole = [], []
    for key in range(position + 1):
        distance = position - key
        if visibility.window is not None and distance >= visibility.window:
            continue
        first = key == 0
        counterpart = 0 if first and apart else late - distance
        if not (first and cut):
            whole.append(scores[counterpart])
        if not first:
            body.append(scores[counterpart])
    if sink is not None:
        whole.append(sink)
        body.append(sink)
    return torch.stack(whole).logsumexp(0), torch.stack(body).logsumexp(0)


def assert_is_counterfactual(seen, scores, visibility, *, cut_heads=(), sink=None, apart=True):
    for head in range(HEADS):
        for column, prefix in enumerate(PREFIXES):
            for row in range(WINDOW):
                for n in range(2):
                    whole, body = counterfactual(
                        scores[n, head, T - WINDOW + row],
                        prefix,
                        row,
                        visibility,
                        cut=head in cut_heads,
                        sink=None if sink is None else sink[head],
                        apart=apart,
                    )
                    place = n, column, row, head
                    torch.testing.assert_close(seen["remasked_normalizer"][place], whole)
                    torch.testing.assert_close(seen["remasked_body"][place], body)


LATE = Observation(n_queries=WINDOW, prefixes=PREFIXES, window=WINDOW)
# window 8: late rows do not see key 0, rows behind prefixes 1, 2 and (in part) 5 do
VISIBILITIES = [Visibility(), Visibility(window=8), Visibility(window=3), Visibility(window=40)]


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("cut", ["none", "some", "all"])
@pytest.mark.parametrize("sink", [None, SINK], ids=["plain", "learned-sink"])
def test_mask_counterfactual_by_brute_force(visibility, cut, sink):
    seen, scores = observe(LATE, visibility, cut=cut, sink=sink)
    heads = {"none": (), "some": (2,), "all": range(HEADS)}[cut]
    assert_is_counterfactual(seen, scores, visibility, cut_heads=heads, sink=sink)


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_mask_counterfactual_under_a_softcap(visibility):
    seen, scores = observe(LATE, visibility, softcap=1.5)
    assert_is_counterfactual(seen, scores, visibility)


@pytest.mark.parametrize("visibility", VISIBILITIES)
def test_where_no_first_token_is_apart_the_nearest_keys_are_seen(visibility):
    observation = Observation(WINDOW, prefixes=PREFIXES, window=WINDOW, first_is_apart=False)
    seen, scores = observe(observation, visibility)
    assert_is_counterfactual(seen, scores, visibility, apart=False)


@pytest.mark.parametrize("visibility", [*VISIBILITIES, Visibility(causal=False)])
@pytest.mark.parametrize("cut", ["none", "some", "all"])
@pytest.mark.parametrize("apart", [True, False])
def test_remasked_at_the_own_prefix_is_the_normalizer(visibility, cut, apart):
    if not apart and cut != "none":
        cut = "none"  # which key is cut is a matter of the first one being apart
    observation = Observation(WINDOW, prefixes=PREFIXES, window=WINDOW, first_is_apart=apart)
    seen, _ = observe(observation, visibility, cut=cut, sink=SINK)
    torch.testing.assert_close(seen["remasked_normalizer"][:, -1], seen["normalizer"])


@pytest.mark.parametrize("window", [None, 8, 3])
def test_without_a_causal_mask_nothing_shrinks(window):
    seen, _ = observe(LATE, Visibility(causal=False, window=window))
    for column in range(len(PREFIXES)):
        torch.testing.assert_close(seen["remasked_normalizer"][:, column], seen["normalizer"])


def test_prefixes_beyond_the_own_one_have_no_counterfactual():
    seen, _ = observe(LATE, Visibility(), length=T - 6)
    missing = seen["remasked_normalizer"].isnan().flatten(2).all(-1)
    assert missing.tolist() == [[False] * 4 + [True]] * 2
    assert torch.equal(seen["remasked_normalizer"].isnan(), seen["remasked_body"].isnan())


@pytest.mark.parametrize("visibility", VISIBILITIES)
@pytest.mark.parametrize("n_queries", [1, 6, T])
def test_sink_and_offset_scores_are_those_of_the_matrix(visibility, n_queries):
    offsets = (0, 1, 5, T - 1, T, 3 * T)
    seen, scores = observe(Observation(n_queries, offsets), visibility, cut="all", softcap=2.0)
    late = scores[:, :, T - n_queries :]
    torch.testing.assert_close(seen["sink_score"], late[..., 0].transpose(1, 2))
    for column, offset in enumerate(offsets):
        for row in range(n_queries):
            key = T - n_queries + row - offset
            found = seen["offset_score"][:, row, :, column]
            if key < 0:
                assert found.isnan().all()
            else:
                torch.testing.assert_close(found, late[:, :, row, key])


def test_only_what_was_asked_for_is_emitted():
    always = {"normalizer", "sink_score", "sink_value"}
    assert set(observe(Observation(3), Visibility())[0]) == always
    assert set(observe(Observation(3, (1,)), Visibility())[0]) == always | {"offset_score"}
    remasked = {"remasked_normalizer", "remasked_body"}
    assert set(observe(LATE, Visibility())[0]) == always | remasked


@pytest.mark.parametrize("name", ["o_proj", "c_proj", "dense", "out_proj"])
def test_sink_value_is_what_key_0_writes_through_each_head(name):
    """Key 0 alone, through one head alone, less what the projection adds by itself."""
    project = torch.nn.Linear(HEADS * WIDTH, 11).double()
    module = types.SimpleNamespace(layer_idx=1, **{name: project})
    seen = {}
    observer = Observer(lambda name, _, tensor: seen.update({name: tensor}), Observation(3))
    query, key, value = draw()
    with torch.no_grad(), observing(observer):
        observed_attention(module, query, key, value, Visibility())
    weight = project.weight.detach().unflatten(1, (HEADS, WIDTH))
    first = value[:, [0, 0, 1, 1], 0]
    expected = torch.einsum("bhd,whd->bhw", first, weight).norm(dim=-1)
    torch.testing.assert_close(seen["sink_value"], expected)


def test_sink_value_is_unknown_without_an_output_projection():
    seen, _ = observe(Observation(3), Visibility())
    assert seen["sink_value"].shape == (2, HEADS)
    assert seen["sink_value"].isnan().all()


@pytest.mark.parametrize("sink", [None, SINK], ids=["plain", "learned-sink"])
@pytest.mark.parametrize("window", [None, 8])
def test_fixed_denominator_weighs_by_the_scores_alone(window, sink):
    query, key, value = draw()
    change = Intervention(fixed_denominator=((1, 0, 2.0), (1, 3, -1.0), (7, 2, 5.0)))
    keywords = dict(scaling=0.5, s_aux=sink)
    visibility = Visibility(window=window)
    plain = observed_attention(LAYER, query, key, value, visibility, **keywords)[0]
    with observing(Observer(intervention=change)):
        fixed = observed_attention(LAYER, query, key, value, visibility, **keywords)[0]
    scores, rows = scores_of(query, key), torch.arange(T)
    scores.masked_fill_(~visibility.mask(rows, rows), -torch.inf)
    for head, c in ((0, 2.0), (3, -1.0)):
        expected = (scores[:, head] - c).exp() @ value[:, head // 2]
        torch.testing.assert_close(fixed[:, :, head], expected)
    assert torch.equal(fixed[:, :, [1, 2]], plain[:, :, [1, 2]])


@pytest.mark.parametrize("visibility", [*VISIBILITIES, Visibility(causal=False)])
def test_cut_heads_do_not_see_key_0_and_the_others_do(visibility):
    query, key, value = draw()
    cut = Intervention(cut_sink=((1, 0), (1, 3), (7, 2)))
    outputs = []
    for intervention in (NO_INTERVENTION, cut):
        with observing(Observer(intervention=intervention)):
            output, _ = observed_attention(LAYER, query, key, value, visibility, scaling=0.5)
        outputs.append(output.transpose(1, 2))
    shown, hidden = outputs
    weights = scores_of(query, key)
    rows = torch.arange(T)
    weights.masked_fill_(~visibility.mask(rows, rows), -torch.inf)
    weights[:, [0, 3], 1:, 0] = -torch.inf
    expected = weights.softmax(-1) @ value.repeat_interleave(2, 1)
    torch.testing.assert_close(hidden, expected)
    assert torch.equal(hidden[:, [1, 2]], shown[:, [1, 2]])
    assert torch.equal(hidden[:, :, 0], shown[:, :, 0])


def test_length_1_has_no_sink_to_cut():
    query, key, value = draw(1)
    observer = Observer(intervention=Intervention(cut_sink="all"))
    with observing(observer):
        output, _ = observed_attention(LAYER, query, key, value, Visibility())
    torch.testing.assert_close(output.transpose(1, 2), value.repeat_interleave(2, 1))


def test_scaling_is_that_of_the_head_width_where_none_is_given():
    query, key, value = draw()
    plain = observed_attention(LAYER, query, key, value, Visibility())[0]
    given = observed_attention(LAYER, query, key, value, Visibility(), scaling=WIDTH**-0.5)[0]
    assert torch.equal(plain, given)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, T, T, dtype=torch.bool).tril()])
def test_a_mask_of_another_make_is_refused(mask):
    with pytest.raises(ModelError, match="layer 1 got a mask that posprobe did not make"):
        observed_attention(LAYER, *draw(), mask)


def test_combined_interventions():
    one = Intervention(window=8, cut_sink=((0, 1),), temperature=((0, 0.5),))
    other = Intervention(causal=False, window=5, temperature=((0, 0.5), (2, 3.0)))
    both = one.combined(other)
    assert both == Intervention(
        causal=False,
        window=5,
        cut_sink=((0, 1),),
        temperature=((0, 0.5), (0, 0.5), (2, 3.0)),
    )
    assert [both.factor(layer) for layer in range(3)] == [0.25, 1.0, 3.0]
    assert NO_INTERVENTION.combined(one) == one.combined(NO_INTERVENTION) == one
    assert one.combined(Intervention(cut_sink="all")).cut_sink == "all"


def test_visibility_under_an_intervention():
    native = Visibility(window=8)
    assert NO_INTERVENTION.visibility(native) == native
    assert Intervention(window=5).visibility(native) == Visibility(window=5)
    assert Intervention(window=9).visibility(native) == native
    assert Intervention(causal=False).visibility(native) == Visibility(False, 8)
    assert Intervention(window=5).visibility(Visibility()) == Visibility(window=5)


def test_heads_without_sink():
    some = Intervention(cut_sink=((1, 0), (1, 3), (2, 2)))
    assert [some.heads_without_sink(layer, 4) for layer in range(3)] == [[], [0, 3], [2]]
    assert Intervention(cut_sink="all").heads_without_sink(0, 3) == [0, 1, 2]
    assert NO_INTERVENTION.heads_without_sink(0, 3) == []


def test_scores_of_lower_precision_are_kept_in_float32():
    query, key, _ = (x.bfloat16() for x in draw())
    normalizer = torch.zeros(2, HEADS, T)
    seen = observe_scores(
        query, key, normalizer, Visibility(), Observation(5, (1,), (2,), 4), Scoring(0.5), []
    )
    assert {x.dtype for x in seen.values()} == {torch.float32}
    exact = scores_of(query.double(), key.double())[:, :, -5:, 0].transpose(1, 2).float()
    torch.testing.assert_close(seen["sink_score"], exact)
