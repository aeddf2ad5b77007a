"""The command line in a process of its own that a signal stops: `stopped_child.py WHERE SIGNAL ...`

WHERE names a function that sends SIGNAL to its own process group on its first call, and then waits.
The rest is posprobe's command line.
"""

import importlib
import os
import signal
import sys
import time


def main(where, name, *command):
    module, attribute = where.rsplit(":", 1)
    owner = importlib.import_module(module)
    *path, last = attribute.split(".")
    for part in path:
        owner = getattr(owner, part)
    plain = getattr(owner, last)

    def stopping(*args, **keywords):
        number = getattr(signal, name)
        os.kill(os.getpid(), number) if number == signal.SIGKILL else os.killpg(0, number)
        time.sleep(1)
        return plain(*args, **keywords)

    setattr(owner, last, stopping)
    from posprobe.cli import main as posprobe

    posprobe(command)


if __name__ == "__main__":
    main(*sys.argv[1:])
