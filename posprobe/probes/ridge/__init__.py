"""Ridge regression from sufficient statistics, as scikit-learn estimators.

banded   computes coefficients and errors from moments
search   chooses penalties
design   resolves feature groups, penalty grids and folds
refit    bootstraps sequences, and fits and chooses penalties again in every replicate
group    defines GroupRidgeCV
scored   adds the errors of each sequence, and their bootstrap
probe    defines PositionProbe
"""

from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe

__all__ = ["GroupRidgeCV", "PositionProbe"]
