"""Where the classes of a picture are, by what their scores depend on (nn/saliency.py): back-propagation, DCSM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa

from mvray.data import map_field
from mvray.errors import SettingError
from mvray.experiment import LABELS, NOT_IDENTITY, Batch, Generator, Read, check_above_0
from mvray.generators.through import ThroughConfig
from mvray.nn import Method, Saliency, class_saliency


@dataclass(frozen=True, kw_only=True)
class Config(ThroughConfig):
    """Saliency maps of the likeliest classes by the method that ``of`` trained (a tagger), as the column ``name``.

    ``limited``: the classes that the picture has by its labels come first among the candidates, as training pictures
    need it. Maps have a cell for each ``cell`` x ``cell`` pixels.
    """

    kind: ClassVar[str] = "saliency"
    form: Saliency = Saliency()
    name: str = "saliency"
    limited: bool = False
    cell: int = 4
    batch_size: int = field(default=8, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_0(self, "generator", "cell")

    @property
    def needs(self) -> tuple[str, ...]:
        return (LABELS,) if self.limited else ()

    def build(self, method: Method | None, read: Read) -> Generator:
        assert method is not None, "saliency looks through a trained method"
        layers = self.form.layers or method.saliency_layers
        if not layers:
            raise SettingError(
                f"{type(method).__name__} does not say where saliency looks; name layers with generator.form.layers."
            )
        return Maps(self, method, layers)


class Maps(Generator):
    """Columns: ``NAME`` (maps of the M candidates, uint8), ``NAME_classes`` (M classes, int16) and ``NAME_tags`` (how
    likely each is in the picture, M float32)."""

    def __init__(self, config: Config, method: Method, layers: tuple[str, ...]) -> None:
        self._config, self._method, self._layers = config, method, layers

    def __call__(self, batch: Batch) -> pa.Table:
        config, (height, width) = self._config, batch["image"].shape[2:]
        size = max(1, height // config.cell), max(1, width // config.cell)
        saliency = class_saliency(
            self._method.score_maps,
            self._method,
            self._layers,
            batch["image"],
            size,
            config.form,
            batch[LABELS] if config.limited else None,
        )
        maps_BX = (255 * saliency.maps).round().byte().flatten(1).cpu().numpy()
        classes_BM = saliency.candidates.cpu().numpy().astype(np.int16)
        tags_BM = saliency.probabilities.float().cpu().numpy()
        candidates = classes_BM.shape[1]
        fields = [
            map_field(config.name, *size, kind="uint8", maps=candidates),
            pa.field(f"{config.name}_classes", pa.list_(pa.int16(), candidates)),
            pa.field(f"{config.name}_tags", pa.list_(pa.float32(), candidates)),
        ]
        arrays = [
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
            for values in (maps_BX, classes_BM, tags_BM)
        ]
        return pa.table(arrays, schema=pa.schema(fields))
