"""One module per command (audit, analyze, compare, selfcheck); they compose the other rooms."""
