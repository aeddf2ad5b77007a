"""The command line: turns arguments into calls, and every mistake into one line.

group      runs a command, and says in one line what was wrong
options    are shared by several commands
on_models  has the commands that run or list models
on_files   has the commands on stored files
"""

from posprobe.cli import on_files, on_models  # the commands add themselves to the group
from posprobe.cli.group import main

__all__ = ["main", "on_files", "on_models"]
