"""Confidence intervals and multiple testing over independent units.

The unit is the cluster (a sequence, or an item of a paired design), never the token. Bootstrap
samples are drawn once, as counts per cluster (`cluster_weights`), and passed to every statistic,
so all statistics share the same draws. The functions are

- `bootstrap_interval`: percentile, basic, normal, t and BCa intervals from bootstrap replicates;
- `studentized_limits`, `studentized_means`: bootstrap limits that hold where a few clusters carry
  most of a statistic;
- `mean_interval`: Student's t interval of a mean, with one number per cluster;
- `jackknife_interval`: a t interval from leave-one-out values;
- `fieller_ratio`, `log_ratio_bootstrap_t`: intervals of a ratio of two paired means;
- `plan_size`, `next_size`: the number of units that a wanted width or power needs;
- `crossing`, `crossing_limits`: where a curve has made a share of its change;
- `max_t`, `benjamini_hochberg`, `holm`: adjustments for many statistics at once.

An `Interval` holds an estimate, its limits, its estimand and the number of units. `Inference` holds
the settings: the level, the numbers of resamples, the seed and the number of processes, among
which `in_processes` divides the work.
"""

from posprobe.intervals.arrays import Array
from posprobe.intervals.checks import LEAST_RESAMPLES, check_resamples
from posprobe.intervals.crossings import crossing, crossing_limits
from posprobe.intervals.inference import Inference
from posprobe.intervals.interval import Interval
from posprobe.intervals.inversion import student_p
from posprobe.intervals.planning import Goal, Studies, next_size, plan_size
from posprobe.intervals.processes import in_processes
from posprobe.intervals.ratio import fieller_limits, fieller_ratio, log_ratio_bootstrap_t
from posprobe.intervals.resampling import (
    STUDENTIZED,
    bootstrap_interval,
    bootstrap_limits,
    cluster_weights,
    standard_error,
    studentized_limits,
    studentized_means,
    studentized_p,
)
from posprobe.intervals.simultaneous import MaxT, benjamini_hochberg, holm, max_t
from posprobe.intervals.student import (
    jackknife_interval,
    leave_one_out,
    mean_interval,
    pseudo_values,
)

__all__ = [
    "LEAST_RESAMPLES",
    "STUDENTIZED",
    "Array",
    "Goal",
    "Inference",
    "Interval",
    "MaxT",
    "Studies",
    "benjamini_hochberg",
    "bootstrap_interval",
    "bootstrap_limits",
    "check_resamples",
    "cluster_weights",
    "crossing",
    "crossing_limits",
    "fieller_limits",
    "fieller_ratio",
    "holm",
    "in_processes",
    "jackknife_interval",
    "leave_one_out",
    "log_ratio_bootstrap_t",
    "max_t",
    "mean_interval",
    "next_size",
    "plan_size",
    "pseudo_values",
    "standard_error",
    "student_p",
    "studentized_limits",
    "studentized_means",
    "studentized_p",
]
