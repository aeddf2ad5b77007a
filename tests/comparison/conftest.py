"""Stored files of several models, and what comparing them gives."""

import pytest
from lineups import family, variants

from posprobe.comparison import compare_lineup, line_up


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def comparison(models):
    return compare_lineup(line_up(models))


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    return compare_lineup(line_up(variants(tmp_path_factory.mktemp("variants"))))
