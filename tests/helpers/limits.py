"""Which limits of a table follow the level of confidence."""

import numpy as np


def pairs_of(table):
    """Names of the columns that hold lower and upper limits."""
    lower = [name for name in table if "low" in str(name).split("_")]
    pairs = [(name, name.replace("low", "high")) for name in lower]
    return [(low, high) for low, high in pairs if high in table]


def compare_limits(sure, unsure):
    """Limits of two levels in the same tables: names of those that are compared, and of the wrong.

    Wherever the higher level has a width, limits of the lower level must lie closer together.
    """
    compared, wrong = set(), set()
    for name, table in sure.items():
        assert len(table) == len(unsure[name]), name
        for low, high in pairs_of(table):
            wide, narrow = (
                t[high].to_numpy(float, na_value=np.nan) - t[low].to_numpy(float, na_value=np.nan)
                for t in (table, unsure[name])
            )
            some = wide > 0
            if some.any():
                compared.add(f"{name}.{low}")
            if not (narrow[some] < wide[some]).all():
                wrong.add(f"{name}.{low}")
    return compared, wrong


def follows(sure, unsure, levels=(0.95, 0.5)):
    """Whether two intervals of one estimate are at these levels, and the second is narrower."""
    if (sure.level, unsure.level) != levels:
        return False
    if sure.unbounded or sure.high == sure.low:
        return True
    return unsure.high - unsure.low < sure.high - sure.low
