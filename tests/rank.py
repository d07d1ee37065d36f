"""One rank of a pair that stays for a whole test run: one task a line comes in, "done" or the error goes out."""

import json
import sys

import toys  # noqa: F401 - its classes may be named in a task: nothing is imported because of that

from mvray.environment import Torchrun
from mvray.errors import MvrayError
from mvray.loop import train
from mvray.settings import decoded


class Rank(Torchrun):
    """Asked to stop at the ``stop_at``-th time that it looks."""

    stop_at = 0

    def stopping(self) -> bool:
        self.stop_at -= 1
        return self.stop_at == 0


here = Rank()
for line in sys.stdin:
    given = json.loads(line)
    here.stop_at = given["stop_at"]
    try:
        train(decoded(given["task"]), here)
        print("done", flush=True)
    except MvrayError as error:
        print(error, flush=True)
