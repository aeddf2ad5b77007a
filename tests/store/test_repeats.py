"""Items that repeat others, token for token, are found whatever their labels are."""

import numpy as np
import synthetic

from posprobe.store import repeated_items, repeats_in_words


def test_all_sequences_of_an_item_must_be_the_same():
    tokens = np.array([[1, 2, -1], [1, 2, -1], [3, 1, 2], [4, 1, 2]])
    assert repeated_items(tokens, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == ()
    tokens[2:, 0], tokens[1, 0] = 3, 5
    assert repeated_items(tokens, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == ()
    tokens[1, 0] = 1
    assert repeated_items(tokens, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])) == ((0, 1),)


def test_the_order_of_sequences_and_the_labels_do_not_matter(rng):
    tokens = rng.integers(1000, size=(4, 6))
    tokens = np.concatenate([tokens, tokens[[2, 2, 0]]])
    item = np.array([40, 7, 3, 12, 99, 5, 1])
    order = rng.permutation(7)
    found = repeated_items(tokens[order], item[order], np.zeros(7))
    assert set(found) == {(3, 5, 99), (1, 40)}


def test_padding_is_part_of_a_sequence():
    assert repeated_items(np.array([[1, 2, -1], [1, 2, 2]]), np.arange(2), np.zeros(2)) == ()


def test_a_file_names_them(tmp_path, rng):
    tokens = rng.integers(5, 99, size=(6, 5))
    tokens[4] = tokens[1]
    for name, content in (("some", tokens), ("none", np.arange(30).reshape(6, 5))):
        index = dict(tokens=content, item=np.arange(6), prefix_length=np.zeros(6))
        arrays = {"normalizer": rng.normal(size=(1, 6, 5, 2))}
        more = dict(sequence_id=np.arange(6), query_start=np.zeros(6))
        store = synthetic.write(tmp_path / f"{name}.h5", arrays, index=index | more)
        said = "1 of 6 items repeats another token for token (1 = 4)" if name == "some" else "none"
        assert store.repeats_in_words() == store.summary()["repeated_items"] == said


def test_long_lists_are_cut():
    said = repeats_in_words([(n, n + 50) for n in range(20)], 80)
    assert said.startswith("20 of 80 items repeat others token for token (0 = 50, 1 = 51")
    assert said.endswith("4 = 54, ...)")
