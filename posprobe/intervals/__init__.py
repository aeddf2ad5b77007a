"""Intervals: what a number is an estimate of, how sure it is, and over how many independent units.

The unit is the cluster (a sequence, or an item of a paired design), never the token. Resampling is
drawn once, as counts per cluster (`cluster_weights`), and handed to every statistic, so many
statistics share their draws. The intervals are

- `bootstrap_interval`: percentile, basic, normal, t, BCa from bootstrap replicates;
- `mean_interval`: the mean of one number per cluster, by Student's t;
- `jackknife_interval`: from leave-one-out values;
- `fieller_ratio`, `log_ratio_bootstrap_t`: a ratio of two paired means;
- `max_t`, `benjamini_hochberg`, `holm`: many statistics at once.

`Inference` holds the level, the number of resamples, the seed and the number of processes;
`in_processes` runs what is fitted anew in them.
"""

from posprobe.intervals.arrays import Array
from posprobe.intervals.inference import Inference
from posprobe.intervals.interval import Interval
from posprobe.intervals.processes import in_processes
from posprobe.intervals.ratio import fieller_ratio, log_ratio_bootstrap_t
from posprobe.intervals.resampling import (
    bootstrap_interval,
    bootstrap_limits,
    cluster_weights,
    standard_error,
)
from posprobe.intervals.simultaneous import MaxT, benjamini_hochberg, holm, max_t
from posprobe.intervals.student import (
    jackknife_interval,
    leave_one_out,
    mean_interval,
    pseudo_values,
)

__all__ = [
    "Array",
    "Inference",
    "Interval",
    "MaxT",
    "benjamini_hochberg",
    "bootstrap_interval",
    "bootstrap_limits",
    "cluster_weights",
    "fieller_ratio",
    "holm",
    "in_processes",
    "jackknife_interval",
    "leave_one_out",
    "log_ratio_bootstrap_t",
    "max_t",
    "mean_interval",
    "pseudo_values",
    "standard_error",
]
