"""Ridge regression from sufficient statistics, as scikit-learn estimators.

banded   pure solvers: moments in, coefficients and errors out
search   choosing penalties
design   feature groups, penalty grids, folds
refit    bootstrap over sequences with everything redone
group    GroupRidgeCV
probe    PositionProbe
"""

from posprobe.probes.ridge.group import GroupRidgeCV
from posprobe.probes.ridge.probe import PositionProbe

__all__ = ["GroupRidgeCV", "PositionProbe"]
