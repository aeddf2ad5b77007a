"""One module per command (audit, analyze, compare, plan, ...); they compose the other rooms."""
