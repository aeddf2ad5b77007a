"""What workers of a cluster do instead of capturing, in a module that they can import."""

import os
import signal

import numpy as np

from posprobe.captures import cluster
from posprobe.captures.run import fill

LOG = "POSPROBE_TEST_LOG"


def logged(writer, model, plan, bar):
    """`fill`, with a line for every shard that is begun."""
    items = plan.stimulus.item
    with open(os.environ[LOG], "a") as file:
        file.write(f"{items[0]} {len(items)} {os.getpid()}\n")
    fill(writer, model, plan, bar)


def dying(writer, model, plan, bar):
    """`fill` in a worker that is killed in its second shard."""
    if "POSPROBE_TEST_DYING" not in os.environ:
        os.environ["POSPROBE_TEST_DYING"] = "1"
        logged(writer, model, plan, bar)
    else:
        writer.put("sink_value", np.zeros((2, 4), "f4"), 0)
        os.kill(os.getpid(), signal.SIGKILL)


def replace_fill(function, log):
    os.environ[LOG] = log
    cluster.fill = function
    return os.getpid()
