"""What a worker's own code raised, told apart from what its peers and the cluster did."""

from __future__ import annotations

from collections.abc import Iterator

from mvray.errors import MvrayError, StepFailed
from mvray.pipeline.plan import Planned

BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
"""What a mistake in a method raises."""


def raise_own(error: BaseException, planned: Planned) -> None:
    """Raise what a worker's own code raised, out of Ray's ``error``: starting again would not help.

    A RuntimeError or OSError is what ranks see whose peer was lost, so nothing is raised for those.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, MvrayError):
            # Ray's copy of it also is a RayTaskError, whose text is the whole traceback.
            raise getattr(cause, "cause", cause) from error
    for cause in causes:
        if isinstance(cause, BUGS):
            planned.folder.write("error.txt", str(error).encode())
            own = getattr(cause, "cause", cause)
            raise StepFailed(
                f"Step {planned.name!r} ended with {type(own).__name__}: {own}. The "
                f"traceback is in {planned.folder.uri}/error.txt; --workers 0 runs the step in this process."
            ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what it was raised from, and what the workers of a Ray Train run raised."""
    if error is None:
        return
    yield error
    for failure in getattr(error, "worker_failures", {}).values():
        yield from _causes(getattr(failure, "_base_exc", None) or failure)
    yield from _causes(error.__cause__ or getattr(error, "cause", None))
