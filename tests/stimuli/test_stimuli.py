"""What must hold of every stimulus, whatever the draw."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posprobe.errors import StimulusError
from posprobe.stimuli import Corpus, make_stimulus, read_text
from posprobe.stimuli.stimulus import DESIGNS, default_prefixes, leading_token

# Every token is its own place in the corpus, so that a token tells where it was taken from.
PLACES = np.arange(20_000)
BOS = 99_999
PREFIXES = (1, 5, 12)
WINDOW = 4
LENGTH = PREFIXES[-1] + WINDOW


def shift(n=6, **options):
    options = {"bos": "none", **options}
    return make_stimulus(
        "shifted", PLACES, n=n, length=LENGTH, window=WINDOW, prefixes=PREFIXES, **options
    )


def rows(stimulus, prefix):
    """Sequences behind `prefix` tokens, by item, without their padding."""
    chosen = stimulus.tokens[stimulus.prefix_length == prefix]
    return chosen[:, : prefix + stimulus.window]


policies = st.sampled_from([{"bos": "none"}, {"bos": "force", "bos_id": BOS}])


class TestShifted:
    @given(seed=st.integers(0, 2**31), policy=policies)
    def test_the_window_is_the_same_behind_every_prefix_and_starts_at_its_length(
        self, seed, policy
    ):
        stimulus = shift(seed=seed, **policy)
        reference = rows(stimulus, PREFIXES[-1])[:, PREFIXES[-1] :]
        for prefix in PREFIXES:
            np.testing.assert_array_equal(rows(stimulus, prefix)[:, prefix:], reference)
        # Proof that the comparison could fail: items differ, and so does what is ahead of a window.
        assert len(np.unique(reference)) == reference.size

    @given(seed=st.integers(0, 2**31), policy=policies)
    def test_a_shorter_prefix_is_the_nearest_part_of_the_longest(self, seed, policy):
        stimulus = shift(seed=seed, **policy)
        longest = rows(stimulus, PREFIXES[-1])
        for prefix in PREFIXES:
            near = longest[:, PREFIXES[-1] - (prefix - 1) :]
            np.testing.assert_array_equal(rows(stimulus, prefix)[:, 1:], near)

    @given(seed=st.integers(0, 2**31), policy=policies)
    def test_position_0_holds_one_token_per_item_whatever_the_prefix(self, seed, policy):
        stimulus = shift(seed=seed, **policy)
        by_prefix = stimulus.first_token.reshape(len(PREFIXES), -1)
        assert (by_prefix == by_prefix[0]).all()
        assert (len(np.unique(by_prefix)) == 1) == (policy["bos"] == "force")

    @given(seed=st.integers(0, 2**31))
    def test_no_text_is_used_twice_and_no_prefix_leads_up_to_its_window(self, seed):
        stimulus = shift(seed=seed, bos="force", bos_id=BOS)
        longest = rows(stimulus, PREFIXES[-1])[:, 1:]
        assert len(np.unique(longest)) == longest.size
        last_of_prefix = longest[:, PREFIXES[-1] - 2]
        assert (longest[:, PREFIXES[-1] - 1] != last_of_prefix + 1).all()

    def test_the_plan_is_recorded_by_sequence(self):
        stimulus = shift(n=3)
        np.testing.assert_array_equal(stimulus.item, [0, 1, 2] * 3)
        np.testing.assert_array_equal(stimulus.prefix_length, np.repeat(PREFIXES, 3))
        np.testing.assert_array_equal(stimulus.query_start, stimulus.prefix_length)
        np.testing.assert_array_equal(stimulus.lengths, stimulus.prefix_length + WINDOW)
        assert (stimulus.n_queries, stimulus.n_items) == (WINDOW, 3)
        for sequence, start in enumerate(stimulus.query_start):
            assert stimulus.tokens[sequence, start] == stimulus.sequence_id[sequence]

    def test_padding_is_on_the_right_only(self):
        stimulus = shift()
        is_token = np.arange(LENGTH) < stimulus.lengths[:, None]
        np.testing.assert_array_equal(stimulus.tokens >= 0, is_token)
        assert (stimulus.tokens[~is_token] == -1).all()

    def test_default_grid_is_the_one_of_the_study(self):
        stimulus = make_stimulus("shifted", PLACES, n=2, length=257)
        assert stimulus.prefixes == (1, 9, 33, 97, 225)
        assert stimulus.window == 32

    def test_a_length_that_the_grid_does_not_reach_is_refused(self):
        with pytest.raises(StimulusError, match=r"make sequences of 16 tokens, but length=20: set"):
            make_stimulus("shifted", PLACES, n=2, length=20, window=4, prefixes=PREFIXES)


class TestOtherDesigns:
    def test_natural_chunks_are_contiguous_and_disjoint(self):
        stimulus = make_stimulus("natural", PLACES, n=50, length=100)
        expected = stimulus.sequence_id[:, None] + np.arange(100)
        np.testing.assert_array_equal(stimulus.tokens, expected)
        assert len(np.unique(stimulus.tokens)) == 50 * 100

    def test_natural_starts_are_spread_over_the_whole_corpus(self):
        starts = [
            make_stimulus("natural", PLACES, n=100, length=70, seed=seed).sequence_id
            for seed in range(20)
        ]
        assert np.mean(starts) == pytest.approx(len(PLACES) / 2, rel=0.05)
        # Another phase of the grid for another seed: every place can start a chunk.
        assert len({int(draw[0]) % 70 for draw in starts}) > 10

    def test_natural_can_use_up_the_corpus_to_the_last_token(self):
        stimulus = make_stimulus("natural", PLACES[:400], n=10, length=40, window=8)
        np.testing.assert_array_equal(np.sort(stimulus.tokens, axis=None), PLACES[:400])

    def test_iid_frequencies_are_those_of_the_corpus(self):
        corpus = np.repeat([3, 5, 8], [100, 300, 600])
        stimulus = make_stimulus("iid", corpus, n=100, length=200)
        share = [(stimulus.tokens == token).mean() for token in (3, 5, 8)]
        # Standard error of a share of 0.6 among 20,000 draws: 0.0035.
        np.testing.assert_allclose(share, [0.1, 0.3, 0.6], atol=0.014)

    def test_iid_draws_are_independent_along_a_sequence(self):
        stimulus = make_stimulus("iid", np.repeat([0, 1], 500), n=100, length=200)
        centred = stimulus.tokens - 0.5
        lagged = 4 * (centred[:, 1:] * centred[:, :-1]).mean()
        assert abs(lagged) < 4 / np.sqrt(100 * 199)

    def test_repeated_is_one_token_and_another_in_each_sequence(self):
        stimulus = make_stimulus("repeated", PLACES[:100].repeat(3), n=100, length=40)
        assert (stimulus.tokens == stimulus.sequence_id[:, None]).all()
        assert len(np.unique(stimulus.first_token)) == 100

    @pytest.mark.parametrize("design", ["natural", "iid", "repeated"])
    def test_a_forced_bos_stands_at_position_0_and_counts_as_a_token(self, design):
        stimulus = make_stimulus(design, PLACES, n=4, length=50, bos="force", bos_id=BOS)
        assert stimulus.tokens.shape == (4, 50)
        np.testing.assert_array_equal(stimulus.tokens == BOS, np.tile(np.arange(50) == 0, (4, 1)))
        assert stimulus.bos_token == BOS

    @pytest.mark.parametrize("design", ["natural", "iid", "repeated"])
    def test_every_position_is_observed_and_the_grid_is_carried(self, design):
        stimulus = make_stimulus(design, PLACES, n=4, length=64, window=16)
        assert stimulus.n_queries == 64
        assert stimulus.prefixes == default_prefixes(64, 16)
        for zero in (stimulus.query_start, stimulus.prefix_length):
            np.testing.assert_array_equal(zero, 0)

    def test_a_grid_ends_where_the_sequence_does(self):
        stimulus = make_stimulus("natural", PLACES, n=2, length=28, window=8, prefixes=(1, 20))
        assert stimulus.prefixes == (1, 20)
        with pytest.raises(StimulusError, match="sequences of 28 tokens, but length=64"):
            make_stimulus("natural", PLACES, n=2, length=64, window=8, prefixes=(1, 20))


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("bos", ["none", "force"])
class TestEveryDesign:
    def make(self, design, bos, n=5, **options):
        return make_stimulus(
            design, PLACES, n=n, length=64, window=16, bos=bos, bos_id=BOS, **options
        )

    def test_same_seed_same_stimulus_and_another_seed_another(self, design, bos):
        first, again, other = (self.make(design, bos, seed=seed) for seed in (3, 3, 4))
        assert first.describe() == again.describe()
        np.testing.assert_array_equal(first.tokens, again.tokens)
        assert first.describe()["tokens_sha256"] != other.describe()["tokens_sha256"]

    def test_the_first_items_stay_when_more_are_asked_for(self, design, bos):
        few, many = self.make(design, bos, n=3), self.make(design, bos, n=9)
        kept = many.item < 3
        np.testing.assert_array_equal(few.tokens, many.tokens[kept])
        np.testing.assert_array_equal(few.sequence_id, many.sequence_id[kept])

    @given(n=st.integers(2, 20), more=st.integers(2, 20), seed=st.integers(0, 2**31))
    def test_two_stimuli_of_other_items_are_one_of_all_items(self, design, bos, n, more, seed):
        whole = self.make(design, bos, n=n + more, seed=seed)
        first = self.make(design, bos, n=n, seed=seed)
        rest = self.make(design, bos, n=more, seed=seed, first_item=n)
        for part, here in ((first, whole.item < n), (rest, whole.item >= n)):
            for name in ("tokens", "item", "prefix_length", "sequence_id", "query_start"):
                found, expected = getattr(part, name), getattr(whole, name)[here]
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected, err_msg=name)
        assert rest.describe()["first_item"] == n
        assert "first_item" not in first.describe()

    def test_the_first_token_is_the_one_that_stands_there(self, design, bos):
        stimulus = self.make(design, bos)
        np.testing.assert_array_equal(stimulus.first_token, stimulus.tokens[:, 0])

    def test_sequences_of_equal_length_are_adjacent(self, design, bos):
        assert (np.diff(self.make(design, bos).lengths) >= 0).all()

    def test_the_description_is_json_and_holds_the_protocol(self, design, bos):
        plan = json.loads(json.dumps(self.make(design, bos).describe()))
        assert plan["design"] == design
        assert plan["bos_token"] == (BOS if bos == "force" else None)
        assert plan["prefixes"] == list(default_prefixes(64, 16))
        assert (plan["seed"], plan["n_items"], plan["length"]) == (0, 5, 64)

    def test_types_are_those_of_the_file_format(self, design, bos):
        stimulus = self.make(design, bos)
        assert stimulus.sequence_id.dtype == np.int64
        for name in ("tokens", "lengths", "item", "prefix_length", "query_start", "first_token"):
            assert getattr(stimulus, name).dtype == np.int32, name


@pytest.mark.parametrize(
    ("design", "digest"),
    [
        ("natural", "27cc10021cfb3603"),
        ("shifted", "7abb0c9971ae0010"),
        ("iid", "3e07c8c05ed858ec"),
        ("repeated", "745bcc1a90d60d1b"),
    ],
)
def test_one_document_gives_the_tokens_of_release_0_1(design, digest):
    corpus = PLACES % 5000
    stimulus = make_stimulus(design, corpus, n=9, length=257, bos="force", bos_id=BOS, seed=3)
    assert stimulus.describe()["tokens_sha256"].startswith(digest)


class TestDocuments:
    """Several documents: every token tells its place in the corpus, so a chunk its document."""

    SIZES = (300, 70, 20, 150, 10, 40, 64)  # of which a chunk of 64 fits into four
    SEPARATOR = np.array([55_555, 55_556])

    def corpus(self, sizes=SIZES, **known):
        documents = np.split(PLACES[: sum(sizes)], np.cumsum(sizes)[:-1])
        return Corpus(tuple(documents), separator=self.SEPARATOR, **known)

    @given(
        sizes=st.lists(st.integers(1, 200), min_size=1, max_size=12),
        design=st.sampled_from(["natural", "shifted"]),
        seed=st.integers(0, 2**31),
    )
    def test_no_chunk_lies_across_documents_that_are_long_enough(self, sizes, design, seed):
        corpus = self.corpus(sizes)
        try:
            stimulus = make_stimulus(design, corpus, n=2, length=41, window=8, seed=seed)
        except StimulusError:
            size = 41 - (design == "shifted")
            chunks = sum(len(piece) // size for piece in corpus.pieces(size))
            assert chunks < 2 + (design == "shifted")
            return
        size = 41 - (design == "shifted")
        owner = np.repeat(np.arange(len(sizes)), sizes)
        for row, length in zip(stimulus.tokens, stimulus.lengths, strict=True):
            window = row[length - 8 : length] if design == "shifted" else row
            places = window[window < len(PLACES)]
            owners = set(owner[places])
            assert len(owners) == 1 or all(sizes[each] < size for each in owners)

    def test_short_documents_are_joined_with_the_separator_behind_the_others(self):
        pieces = self.corpus().pieces(64)
        assert [len(piece) for piece in pieces] == [300, 70, 150, 64, 20 + 2 + 10 + 2 + 40]
        np.testing.assert_array_equal(pieces[-1][20:22], self.SEPARATOR)
        assert (self.corpus().joined(64), self.corpus().joined(11)) == (3, 0)

    def test_the_description_says_how_many_were_joined(self):
        described = make_stimulus("natural", self.corpus(), n=4, length=64).describe()
        assert described["text"] == {"documents": 7, "joined": 3}
        described = make_stimulus("iid", self.corpus(), n=4, length=64).describe()
        assert described["text"] == {"documents": 7, "joined": 0}

    def test_every_document_can_be_drawn_from(self):
        seen = set()
        for seed in range(40):
            stimulus = make_stimulus("natural", self.corpus(), n=3, length=64, seed=seed)
            seen |= set(stimulus.tokens.flat)
        assert {0, 300, 420, 540 + 10} & seen
        assert seen & set(range(370, 390))  # a short one

    def test_a_refusal_names_tokens_documents_and_chunks(self):
        with pytest.raises(
            StimulusError,
            match=r"has 654 tokens in 7 documents, which hold 9 chunks of 64 .* need 640",
        ):
            make_stimulus("natural", self.corpus(), n=10, length=64)
        assert make_stimulus("natural", self.corpus(), n=9, length=64).n_items == 9

    @pytest.mark.parametrize("design", ["natural", "shifted"])
    def test_the_first_items_stay_when_more_are_asked_for(self, design):
        few, many = (make_stimulus(design, self.corpus(), n=n, length=64) for n in (2, 5))
        np.testing.assert_array_equal(few.tokens, many.tokens[many.item < 2])

    def test_unigrams_are_those_of_the_documents_without_separators(self):
        for design in ("iid", "repeated"):
            stimulus = make_stimulus(design, self.corpus(), n=20, length=64)
            assert stimulus.tokens.max() < 654


def test_a_tokenizer_without_tokens_for_white_space_joins_documents_all_the_same():
    text = read_text(["ab", "cd", "!"])
    corpus = Corpus.of_text(text, lambda string: [ord(c) for c in string if c.isalpha()])
    assert [piece.tolist() for piece in corpus.pieces(4)] == [[97, 98, 99, 100]]


class TestShuffled:
    def corpus(self):
        return Corpus((PLACES[:300], PLACES[300:640]), name="shuffled words", shuffled=True)

    def test_all_tokens_are_there_in_another_order(self):
        stimulus = make_stimulus("natural", self.corpus(), n=10, length=64)
        np.testing.assert_array_equal(np.sort(stimulus.tokens, axis=None), PLACES[:640])
        assert (np.diff(stimulus.tokens) == 1).mean() < 0.02
        assert stimulus.corpus == "shuffled words"

    def test_the_order_is_the_seeds(self):
        first, again, other = (
            make_stimulus("shifted", self.corpus(), n=3, length=64, seed=s) for s in (3, 3, 4)
        )
        np.testing.assert_array_equal(first.tokens, again.tokens)
        assert (first.tokens != other.tokens).any()
        orders = [self.corpus().shuffle(seed).tokens for seed in (3, 4)]
        assert (orders[0] == orders[1]).mean() < 0.02


class TestBosPolicy:
    @pytest.mark.parametrize(
        ("bos", "native_bos", "expected"),
        [
            ("native", None, None),
            ("native", 2, 2),
            ("force", None, 2),
            ("force", 2, 2),
            ("none", 2, None),
        ],
    )
    def test_three_states(self, bos, native_bos, expected):
        assert leading_token(bos, native_bos, bos_id=2) == expected

    def test_forcing_a_bos_that_does_not_exist_is_refused(self):
        with pytest.raises(StimulusError, match=r"bos='force' needs a BOS .* choose bos='native'"):
            make_stimulus("natural", PLACES, n=2, length=64, bos="force")

    def test_unknown_policy_is_refused_with_the_known_ones(self):
        with pytest.raises(
            StimulusError, match=r"policy 'always': choose one of native, force, no"
        ):
            make_stimulus("natural", PLACES, n=2, length=64, bos="always")

    @pytest.mark.parametrize("policy", ["native", "force", "none"])
    @pytest.mark.parametrize("place", [0, 1234])
    def test_a_corpus_with_bos_tokens_in_it_is_refused(self, policy, place):
        corpus = np.insert(PLACES, place, BOS)
        with pytest.raises(StimulusError, match=rf"BOS token 99999 \(token {place}\): tokenize"):
            make_stimulus("natural", corpus, n=2, length=64, bos=policy, bos_id=BOS)

    def test_a_native_bos_in_the_corpus_is_refused_too(self):
        with pytest.raises(StimulusError, match=r"contains the BOS token 0 \(token 0\)"):
            make_stimulus("natural", PLACES, n=2, length=64, native_bos=0)


class TestRefusals:
    def test_unknown_design_lists_the_known(self):
        with pytest.raises(
            StimulusError, match=r"'random': choose one of natural, shifted, iid, r"
        ):
            make_stimulus("random", PLACES, n=2, length=64)

    @pytest.mark.parametrize("n", [1, 0, -3])
    def test_too_few_items(self, n):
        with pytest.raises(StimulusError, match=rf"n={n} is too few: intervals need at least 2"):
            make_stimulus("natural", PLACES, n=n, length=64)

    def test_too_short_a_length(self):
        with pytest.raises(
            StimulusError, match=r"length=33 .* window of 32: .* raise length to 34"
        ):
            make_stimulus("natural", PLACES, n=2, length=33)
        assert make_stimulus("natural", PLACES, n=2, length=34).prefixes == (1, 2)

    def test_too_short_a_window(self):
        with pytest.raises(StimulusError, match=r"window=0 is too short"):
            make_stimulus("natural", PLACES, n=2, length=64, window=0)

    @pytest.mark.parametrize("prefixes", [(), (5,), (0, 5), (5, 5), (9, 5)])
    def test_prefixes_that_are_no_grid(self, prefixes):
        with pytest.raises(StimulusError, match=r"two increasing lengths from 1 on .*: try \(1, 2"):
            make_stimulus("natural", PLACES, n=2, length=64, prefixes=prefixes)

    def test_sequences_shorter_than_the_grid(self):
        with pytest.raises(
            StimulusError, match=r"sequences of 132 tokens, but length=64: set length"
        ):
            make_stimulus("natural", PLACES, n=2, length=64, prefixes=(1, 100))

    @pytest.mark.parametrize(
        ("design", "have", "need"), [("natural", 200, 256), ("shifted", 200, 315)]
    )
    def test_text_shorter_than_asked_says_how_much_there_is_and_how_much_is_needed(
        self, design, have, need
    ):
        with pytest.raises(
            StimulusError, match=rf"has {have} tokens and .* need {need}: pass a lo"
        ):
            make_stimulus(design, PLACES[:have], n=4, length=64)
        assert len(make_stimulus(design, PLACES[:need], n=4, length=64).tokens)

    def test_too_few_different_tokens_to_repeat(self):
        with pytest.raises(StimulusError, match=r"has 3 different tokens and n=4 repeated"):
            make_stimulus("repeated", np.tile(PLACES[:3], 100), n=4, length=64)

    @pytest.mark.parametrize("design", DESIGNS)
    def test_empty_text(self, design):
        with pytest.raises(StimulusError, match=r"the text is empty: pass one"):
            make_stimulus(design, np.array([], dtype=int), n=2, length=64)

    @pytest.mark.parametrize(
        "corpus", [np.ones(500), np.ones((50, 50), dtype=int), np.full(500, -1)]
    )
    def test_what_is_no_list_of_token_ids(self, corpus):
        with pytest.raises(StimulusError, match=r"one list of token ids >= 0, not \w+ of shape \("):
            make_stimulus("natural", corpus, n=2, length=64)

    def test_a_first_item_that_no_file_can_number(self):
        for first in (-1, 2**31):
            with pytest.raises(StimulusError, match=rf"first_item={first} must be between 0 and"):
                make_stimulus("natural", PLACES, n=2, length=64, first_item=first)

    def test_a_negative_seed(self):
        for seed in (-1, 2**63):
            with pytest.raises(StimulusError, match=rf"seed={seed} must be between 0 and \d+"):
                make_stimulus("natural", PLACES, n=2, length=64, seed=seed)


@given(length=st.integers(3, 5000), window=st.integers(1, 400))
def test_default_prefixes_span_the_sequence(length, window):
    if length < window + 2:
        with pytest.raises(StimulusError, match="too short for a window"):
            default_prefixes(length, window)
        return
    grid = default_prefixes(length, window)
    assert (grid[0], grid[-1]) == (1, length - window)
    assert (np.diff(grid) > 0).all()
