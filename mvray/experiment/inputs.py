"""How a record of a data set becomes a training sample: Pictures, Clips, and what is seen of instance masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mvray.errors import SettingError
from mvray.experiment.fields import ADDED, check_above_0
from mvray.experiment.settings import Settings

STRETCH, PAD = "stretch", "pad"


@dataclass(frozen=True)
class Pictures(Settings):
    """How a picture becomes a training sample: size in pixels, grey or colour, augmentation.

    ``fit`` says how a picture of another size becomes height x width: "stretch", or "pad", where it keeps its pixels
    (a larger one is made smaller until it fits) and what is missing around it is filled with ImageNet's mean colour.

    Augmentation is drawn in training only: ``flip`` mirrors with probability 1/2. ``crop_scale``
    (least, most) is the share of the area that a random crop keeps before it is resized to the full
    size again (1, 1: no crop); it belongs to "stretch". ``size_range`` (least, most) belongs to "pad": the picture's
    sides are multiplied with a number between them, and a place for height x width is drawn. ``jitter`` changes
    brightness, contrast, saturation and hue by at most so much (torchvision's ColorJitter). Targets and generated
    columns that are maps go through the same crop and flip.
    """

    kind: ClassVar[str] = "pictures"
    frames: ClassVar[int] = 1
    height: int = 224
    width: int = 224
    channels: int = 3
    flip: bool = False
    crop_scale: tuple[float, float] = (1.0, 1.0)
    fit: str = field(default=STRETCH, metadata=ADDED)
    size_range: tuple[float, float] = field(default=(1.0, 1.0), metadata=ADDED)
    jitter: tuple[float, float, float, float] = field(default=(0.0, 0.0, 0.0, 0.0), metadata=ADDED)

    def __post_init__(self) -> None:
        check_above_0(self, "pictures", "height", "width")
        if self.fit not in (STRETCH, PAD):
            raise SettingError(f"pictures.fit is {self.fit!r}; expected {STRETCH} or {PAD}.")
        if not 0 < self.size_range[0] <= self.size_range[1] < float("inf"):
            raise SettingError(f"pictures.size_range is {self.size_range}; expected 0 < least <= most.")
        unused = ("crop_scale", self.crop_scale) if self.fit == PAD else ("size_range", self.size_range)
        if tuple(unused[1]) != (1.0, 1.0):
            other = PAD if self.fit == STRETCH else STRETCH
            raise SettingError(f"pictures.{unused[0]} is {unused[1]}, which belongs to pictures.fit={other}.")
        if not (all(part >= 0 for part in self.jitter) and max(self.jitter[:3]) <= 1 and self.jitter[3] <= 0.5):
            raise SettingError(
                f"pictures.jitter is {self.jitter}; expected brightness, contrast and saturation from 0 to 1, "
                "hue from 0 to 0.5."
            )
        if self.channels not in (1, 3):
            raise SettingError(f"channels is {self.channels}; expected 1 (grey) or 3 (colour).")
        if not (0 < self.crop_scale[0] <= self.crop_scale[1] <= 1):
            raise SettingError(f"crop_scale is {self.crop_scale}; expected 0 < least <= most <= 1.")


@dataclass(frozen=True)
class Clips(Settings):
    """How a video becomes a training sample: every ``every``-th of frames x every consecutive frames.

    In training they start anywhere; the shorter side gets a size drawn from ``short_side`` (pixels), a
    place for height x width is drawn, and ``flip`` mirrors with probability 1/2: one draw for the whole
    clip and its masks. Else it is the video's middle, with the shorter side ``test_side``, cut from the
    centre. A video that is too short begins again at its end, as often as needed.
    """

    kind: ClassVar[str] = "clips"
    channels: ClassVar[int] = 3
    height: int = 224
    width: int = 224
    frames: int = 16
    every: int = 4
    short_side: tuple[int, int] = (256, 320)
    test_side: int = 256
    flip: bool = True

    def __post_init__(self) -> None:
        check_above_0(self, "pictures", "height", "width", "frames", "every")
        for name, least in (("short_side", self.short_side[0]), ("test_side", self.test_side)):
            if not max(self.height, self.width) <= least or self.short_side[0] > self.short_side[1]:
                raise SettingError(
                    f"pictures.{name} is {getattr(self, name)}; expected at least height and width, "
                    f"{max(self.height, self.width)}, and least <= most."
                )


PEOPLE, PEOPLE_AND_OBJECTS, ALL = "people", "people and objects", "all"


@dataclass(frozen=True)
class Masks(Settings):
    """What training sees of instance masks (generators/instance_masks.py), as ``batch["masks"]``.

    ``classes`` is "people", "people and objects" (all but scenery: see data/masks.py), "all", or names
    of the segmenter's classes with commas between them; ``least_score`` leaves out what the segmenter
    is less sure of; ``dilate`` widens each mask by so many pixels of the video. With ``union`` they
    become one mask (1 where any is), else each pixel has the number of its instance.
    """

    kind: ClassVar[str] = "masks"
    classes: str = ALL
    least_score: float = 0.5
    union: bool = True
    dilate: int = 0

    def __post_init__(self) -> None:
        check_above_0(self, "masks", "least_score", "dilate", or_0=True)
