"""Groups reach the probe inside scikit-learn's tools as the guide says, and not without asking."""

import re
from pathlib import Path

import numpy as np
import pytest
import synthetic
from sklearn.model_selection import GridSearchCV, GroupKFold

from posprobe import PositionProbe
from posprobe.probes import features

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


@pytest.fixture(scope="module")
def section():
    (text,) = re.findall(r"## In scikit-learn's tools\n(.*?)\n## ", GUIDE.read_text(), re.DOTALL)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng = np.random.default_rng(0)
    arrays = {
        "normalizer": rng.normal(size=(6, 20, 12, 2)),
        "residual": rng.normal(size=(7, 20, 12, 3)),
    }
    return synthetic.write(tmp_path_factory.mktemp("store") / "a.h5", arrays)


def test_the_guide_routes_groups_to_the_probe(section):
    found = {}
    exec(section[0], found)
    assert found["search"].best_estimator_.n_sequences_ == 20
    assert (found["scores"]["test_score"] > 0.1).all()
    exec(section[1], found)


def test_without_routing_rows_are_sequences_as_the_guide_warns(section):
    found = {}
    exec(section[0], found)
    X, position, groups = found["X"], found["position"], found["groups"]
    search = GridSearchCV(PositionProbe(), {"cv": [4]}, cv=GroupKFold(4))
    search.fit(X, position, groups=groups)
    assert search.best_estimator_.n_sequences_ == 320


def test_the_guide_fits_a_file_in_one_streaming_pass(section, store):
    found = {"PositionProbe": PositionProbe, "store": store}
    exec(section[2], found)
    X, y, groups, _ = features(store, 3)
    held = PositionProbe().fit(X, y, groups=groups)
    assert found["probe"].r2_ == pytest.approx(held.r2_, abs=1e-12)
    np.testing.assert_allclose(found["probe"].sequence_sse_, held.sequence_sse_, rtol=1e-9)
