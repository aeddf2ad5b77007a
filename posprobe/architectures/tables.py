"""Make any table of pandas a plain one: columns with names, rows by number, categories in use."""

from __future__ import annotations

import pandas as pd

from posprobe.errors import DesignError

__all__ = ["plain_table"]


def plain_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy of a table whose labels are plain.

    Parameters
    ----------
    table : pandas.DataFrame
        Any table.

    Returns
    -------
    pandas.DataFrame
        Column names are text, named levels of the index are columns, rows are numbered from 0, and
        categories that no row has are gone.

    Raises
    ------
    DesignError
        If columns have several levels, or two have the same name.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({1: pd.Categorical(["a", "a"], categories=["a", "b"])})
    >>> plain = plain_table(table.rename_axis("row"))
    >>> list(plain.columns), list(plain["1"].cat.categories)
    (['row', '1'], ['a'])
    """
    if table.columns.nlevels > 1:
        raise DesignError(
            f"the columns of the table have {table.columns.nlevels} levels: flatten them to one "
            "name each"
        )
    named = [name for name in table.index.names if name is not None and name not in table.columns]
    plain = table.reset_index(level=named) if named else table
    plain = plain.reset_index(drop=True).rename(columns=str)
    if not plain.columns.is_unique:
        twice = plain.columns[plain.columns.duplicated()][0]
        raise DesignError(f"the table has two columns named {twice!r}: rename one")
    used = {
        name: column.cat.remove_unused_categories()
        for name, column in plain.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    }
    return plain.assign(**{str(name): column for name, column in used.items()})
