"""Whether a model's sinks were stable when its training ended."""

import pandas as pd

STABLE = 0.05  # change of attention to key 0
LAST = 1000  # steps of training


def last_change(curve: pd.DataFrame) -> float:
    """Change of attention to key 0 over the last steps, in the head where it is largest."""
    heads = curve.set_index("step").filter(like="early_L")
    before = heads[heads.index <= heads.index[-1] - LAST].iloc[-1]
    change = heads.iloc[-1] - before
    return float(change[change.abs().idxmax()])
