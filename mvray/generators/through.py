"""The settings of generators that look at samples through a trained step."""

from dataclasses import dataclass, field
from typing import ClassVar

from mvray.errors import SettingError
from mvray.experiment import NOT_IDENTITY, GeneratorConfig, Train, check_above_0


@dataclass(frozen=True, kw_only=True)
class ThroughConfig(GeneratorConfig):
    """Looks through ``of``, the step that was trained, at ``batch_size`` samples at a time."""

    must_have_step: ClassVar[bool] = True
    of: Train | None = None
    batch_size: int = field(default=64, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        check_above_0(self, "generator", "batch_size")
        if self.of is None and self.must_have_step:
            raise SettingError(f"generator.of is missing; expected the Train step that {self.kind} looks through.")

    @property
    def looks_through(self) -> Train | None:
        return self.of

    @property
    def samples_per_batch(self) -> int:
        return self.batch_size
