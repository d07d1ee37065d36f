"""A class for each place of every sample, as a trained step sees it: what is tested, and what a weak step trains on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pyarrow as pa
import torch

from mvray.data import as_png, classes_field
from mvray.errors import SettingError
from mvray.experiment import ADDED, IGNORE, LABELS, NOT_IDENTITY, Batch, Generator, Read
from mvray.generators.through import ThroughConfig
from mvray.nn import CRF, Method, marginals

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Config(ThroughConfig):
    """The likeliest class of each place, as the column ``name``.

    Probabilities are those of the method that ``of`` trained or, where ``saliency`` names a column of
    generators/saliency.py, softmax(M / ``softness``) of its maps M and of ``threshold``, the background's value
    everywhere; classes with less than ``least_tag`` are then not in the picture.

    ``limited``: among the picture's own labels and the background (class 0). ``crf`` is what the fully connected CRF
    makes of the probabilities, None for none. Places whose class has a probability below ``least`` are 255, which
    training leaves out.
    """

    kind: ClassVar[str] = "label_maps"
    must_have_step: ClassVar[bool] = False
    name: str = "label_map"
    limited: bool = False
    least: float = 0.0
    crf: CRF | None = field(default=None, metadata=ADDED)
    saliency: str = field(default="", metadata=ADDED)
    threshold: float = field(default=0.3, metadata=ADDED)
    softness: float = field(default=0.12, metadata=ADDED)
    least_tag: float = field(default=0.5, metadata=ADDED)
    batch_size: int = field(default=16, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.of is None) == (not self.saliency):
            raise SettingError(
                "generator.of and generator.saliency exclude one another; expected a trained step, or the name of a "
                "column of saliency maps."
            )
        for name, holds, expected in (
            ("least", 0 <= self.least <= 1, "0 to 1"),
            ("threshold", 0 <= self.threshold <= 1, "0 to 1"),
            ("softness", self.softness > 0, "a value above 0"),
            ("least_tag", 0 <= self.least_tag <= 1, "0 to 1"),
        ):
            if not holds:
                raise SettingError(f"generator.{name} is {getattr(self, name)}; expected {expected}.")

    @property
    def needs(self) -> tuple[str, ...]:
        name = self.saliency
        columns = (name, f"{name}_classes", f"{name}_tags") if name else ()
        return (*columns, LABELS) if self.limited else columns

    @property
    def uses_gpu(self) -> bool:
        return self.of is not None or self.crf is not None

    def build(self, method: Method | None, read: Read) -> Generator:
        return LabelMaps(self, method)


class LabelMaps(Generator):
    """Columns: the class map as a PNG file, and ``confidence``, the mean of the likeliest class's probability."""

    def __init__(self, config: Config, method: Method | None) -> None:
        self._config, self._method = config, method

    def __call__(self, batch: Batch) -> pa.Table:
        config = self._config
        with torch.inference_mode():
            scores_BNHW, classes_BN = self._of_saliency(batch) if config.saliency else self._of_method(batch)
            if config.crf is not None:
                images_B3HW = batch["image"].expand(-1, 3, -1, -1)
                probabilities_BNHW = marginals(scores_BNHW, images_B3HW, config.crf)
            else:
                probabilities_BNHW = scores_BNHW.softmax(1)
            best_BHW, nth_BHW = probabilities_BNHW.max(1)
            classes_BHW = classes_BN.gather(1, nth_BHW.flatten(1)).view_as(nth_BHW)
            classes_BHW = classes_BHW.masked_fill(best_BHW < config.least, IGNORE)
        maps = classes_BHW.to(torch.uint8).cpu().numpy()
        confidence = best_BHW.float().mean((1, 2)).cpu().numpy().astype(np.float32)
        schema = pa.schema([classes_field(config.name), pa.field("confidence", pa.float32())])
        return pa.table([pa.array([as_png(map_HW) for map_HW in maps]), pa.array(confidence)], schema=schema)

    def _of_method(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities of all classes, B x K x H x W, and which class each is, B x K."""
        assert self._method is not None, "looks_through names the step"
        scores_BKHW = self._method.class_maps(batch["image"]).float().clamp_min(1e-12).log()
        if self._config.limited:
            absent_BK = batch[LABELS] == 0
            absent_BK[:, 0] = False
            scores_BKHW = scores_BKHW.masked_fill(absent_BK[:, :, None, None], LEAST_SCORE)
        classes_K = torch.arange(scores_BKHW.shape[1], device=scores_BKHW.device)
        return scores_BKHW, classes_K.expand(len(scores_BKHW), -1)

    def _of_saliency(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the background and each picture's candidates, and which class each is."""
        config = self._config
        maps_BMHW, classes_BM, tags_BM = (batch[name] for name in config.needs[:3])
        classes_BM = classes_BM.long()
        present_BM = batch[LABELS].gather(1, classes_BM) > 0 if config.limited else tags_BM >= config.least_tag
        scores_BMHW = (maps_BMHW / config.softness).masked_fill(~present_BM[:, :, None, None], LEAST_SCORE)
        background_B1HW = torch.full_like(scores_BMHW[:, :1], config.threshold / config.softness)
        background_B1 = torch.zeros_like(classes_BM[:, :1])
        return torch.cat([background_B1HW, scores_BMHW], 1), torch.cat([background_B1, classes_BM], 1)


LEAST_SCORE = -100.0
"""Of a class that cannot be there: e^-100 is none, and the CRF's sums stay finite."""
