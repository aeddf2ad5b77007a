"""Position effects on log attention weights, split into mask and residual channel: T = M + R.

effects        holds the effects and computes their variances, as pure functions of arrays
reading        reads the effects of a layer from a stored file
variances      gives V_T, V_M, V_R, C_MR and the shares their intervals
planning       says how many items a wanted width needs
decomposition  builds the tables by layer, head and offset (`posprobe.decompose`)
bands          splits effects and variances by band of rotation
changes        says what a change of the model leaves of each variance
"""

from posprobe.channels.bands import KEYS, BandEffects, band_effects, decompose_bands, why_no_bands
from posprobe.channels.changes import remaining
from posprobe.channels.decomposition import MAX_UNITS, SPLIT, Decomposition, decompose
from posprobe.channels.effects import ChannelEffects, position_covariance
from posprobe.channels.planning import LEAST_ITEMS, overall_variances, plan_items, simulate_items
from posprobe.channels.reading import (
    REQUIRED,
    channel_effects,
    cut_heads,
    early_limit,
    score_shift,
    why_not_split,
)
from posprobe.channels.variances import Variances, gather_variances, shares, variance_table

__all__ = [
    "KEYS",
    "LEAST_ITEMS",
    "MAX_UNITS",
    "REQUIRED",
    "SPLIT",
    "BandEffects",
    "ChannelEffects",
    "Decomposition",
    "Variances",
    "band_effects",
    "channel_effects",
    "cut_heads",
    "decompose",
    "decompose_bands",
    "early_limit",
    "gather_variances",
    "overall_variances",
    "plan_items",
    "position_covariance",
    "remaining",
    "score_shift",
    "shares",
    "simulate_items",
    "variance_table",
    "why_no_bands",
    "why_not_split",
]
