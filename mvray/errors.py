"""Every error that mvray raises on purpose.

    MvrayError
    ├── UserError            a mistake that the user can mend: one message, no traceback, exit code 2
    │   ├── SettingError     a setting that does not exist or cannot have this value
    │   ├── DataError        a path, layout or data set that is not what was named
    │   ├── ClusterError     the cluster cannot do what was asked (too few GPUs, no storage access)
    │   └── StorageRefused   S3 does not allow what was asked (also a PermissionError)
    ├── StorageFailed        the storage was away or full for too long (also an OSError)
    ├── StepFailed           a step of a job ended in an error; what was finished stays
    │   ├── Interrupted      a step was ended early, with a checkpoint
    │   └── TakenOver        another command works on the same step or search
    └── NonFiniteLoss        a loss became NaN or infinite; names step, epoch and loss

Messages say what was found, what was expected and what to do, in that order.
"""


class MvrayError(Exception):
    """Base of all errors that mvray raises on purpose."""


class UserError(MvrayError, ValueError):
    """A mistake that the user can mend. The command line prints its message alone and exits with 2."""


class SettingError(UserError):
    """A setting that does not exist or cannot have the value given."""


class DataError(UserError):
    """A path, layout or data set that is not what was named."""


class ClusterError(UserError):
    """The machine or cluster cannot do what was asked."""


class StorageRefused(UserError, PermissionError):
    """S3 does not allow what was asked, and would not at another try: keys, bucket, region, clock."""


class StorageFailed(MvrayError, OSError):
    """The storage did not answer, or had no room, for longer than was waited; it may work again later."""


class StepFailed(MvrayError, RuntimeError):
    """A step of a job ended in an error."""


class Interrupted(StepFailed):
    """A step was ended before its time: by Ctrl-C, by a signal, or by a search."""


class TakenOver(StepFailed):
    """Another command has begun to work on the same step or search; the older one ends."""


class NonFiniteLoss(MvrayError, ArithmeticError):
    """A loss became NaN or infinite during training."""
