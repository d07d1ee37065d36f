"""Both ranks of a pair that stays for a whole test run, forked from one process that has imported torch.

Each reads from its socket, whose numbers are the arguments: one task a line comes in, "done" or the error goes out.
"""

import base64
import json
import os
import pickle
import socket
import sys

import torch._dynamo  # noqa: F401  which optimisers import, here once for both

from mvray.errors import MvrayError
from mvray.training.environment import Torchrun
from mvray.training.loop import train


class Rank(Torchrun):
    """Asked to stop at the ``stop_at``-th time that it looks: rank 1 alone, as where its node is to go."""

    stop_at = 0

    def stopping(self) -> bool:
        self.stop_at -= 1
        return self.stop_at == 0 and self.rank == 1


rank = int(os.fork() == 0)
os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
here = Rank()
tasks = socket.socket(fileno=int(sys.argv[1 + rank])).makefile("rw")
for line in tasks:
    given = json.loads(line)
    here.stop_at = given["stop_at"]
    try:
        task = pickle.loads(base64.b64decode(given["task"]))  # noqa: S301  of our own test
        train(task, here, agree_every_s=0.0)  # after every step: where they stop does not depend on the clock
        said = "done"
    except MvrayError as error:
        said = str(error)
    print(said, file=tasks, flush=True)
os._exit(0)  # ending in order takes torch seconds
