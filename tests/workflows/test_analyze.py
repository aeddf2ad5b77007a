"""Files of any quantities are analyzed as far as they go, or refused with what to capture."""

import json

import pytest

import posprobe
from posprobe.channels import REQUIRED
from posprobe.errors import DesignError


@pytest.mark.parametrize(
    ("design", "quantities", "tables", "claims"),
    [
        ("natural", ("position0", "position0_alone"), {"closed_system", "fingerprint"},
         {"closed_system", "fingerprint_varies"}),
        ("natural", ("normalizer", "sink_score"), {"sinks"}, {"sink_heads"}),
        ("natural", ("normalizer", "residual"), {"probes", "partition"}, set()),
        ("shifted", REQUIRED, {"channels", "layer_0"}, {"mask_channel"}),
        ("shifted", ("position0",), {"fingerprint"}, set()),
    ],
)  # fmt: skip
def test_whatever_a_file_has_is_analyzed(tmp_path, design, quantities, tables, claims):
    n = 14 if design == "natural" else 8
    options = dict(design=design, n=n, length=64, quantities=quantities, progress=False)
    posprobe.capture("zoo/rope-0", tmp_path / "a.h5", **options).close()
    report = posprobe.analyze([tmp_path / "a.h5"], tmp_path / "out", progress=False)
    assert report.exists()
    made = {path.stem for path in (tmp_path / "out" / "tables").glob("*.csv")}
    own = {"closed_system", "fingerprint", "sinks", "probes", "channels", "layer_0", "partition"}
    assert made & own >= tables
    assert not (made & {"closed_system", "sinks", "probes", "channels"}) - tables
    said = json.loads((tmp_path / "out" / "claims.json").read_text())
    judged = {claim["id"] for claim in said if claim["verdict"] != "not applicable"}
    assert claims <= judged


def test_a_file_of_which_nothing_can_be_said_is_refused(tmp_path):
    options = dict(design="shifted", n=4, length=64, progress=False)
    posprobe.capture("zoo/rope-0", tmp_path / "a.h5", quantities=("sink_score",), **options).close()
    with pytest.raises(DesignError, match=r"nothing can be analyzed in a\.h5: capture a natural"):
        posprobe.analyze([tmp_path / "a.h5"], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
