"""One file a command: `audit`, `analyze`, `compare`, `selfcheck`. They compose everything below."""
