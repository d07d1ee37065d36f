"""Features of named layers for every sample, in one pass over the data: conv1 to conv5, fc1, fc2 and others.

What grouping reads (Yanagisawa et al., papers.md section 2). The names are those of nn/layers.py, and

    embedding, feature   what Method.predict of the trained step calls so
    pixels               the picture itself, averaged over 32 x 32 places, 0..1: a yardstick without a network
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import pyarrow as pa
import torch

from mvray.errors import SettingError
from mvray.experiment import FILE, Batch, Clips, Generator, Read, check_above_0
from mvray.generators.columns import as_lists, as_table
from mvray.generators.through import ThroughConfig
from mvray.nn import Layers, Method, networks

if TYPE_CHECKING:
    from torch import Tensor

PREDICTED = ("embedding", "feature")
PIXELS, PIXELS_SIDE = "pixels", 32
_CLASSES = 1000  # ImageNet's: what files of weights are for
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MOST = 65504.0  # what float16 holds


@dataclass(frozen=True, kw_only=True)
class Config(ThroughConfig):
    """``layers`` of the network that ``of`` trained, or of torchvision's ``network`` with ``weights`` from a file.

    The second is a yardstick, as ImageNet's weights are: pictures are normalised by ImageNet's mean and
    standard deviation, and the file may have any number of classes. Maps are averaged over a grid of at
    most ``pool`` x ``pool`` places (0: kept whole). The paper does not say how it pools; 2 keeps left apart
    from right and top from bottom.
    """

    kind: ClassVar[str] = "features"
    must_have_step: ClassVar[bool] = False
    layers: tuple[str, ...] = ("fc1",)
    pool: int = 2
    network: str = ""
    weights: str = field(default="", metadata=FILE)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_above_0(self, "generator", "pool", or_0=True)
        if not self.layers or len({column_of(name) for name in self.layers}) < len(self.layers):
            raise SettingError(f"generator.layers is {self.layers}; expected one or more different names.")
        if bool(self.network) != bool(self.weights):
            raise SettingError(
                f"generator.network is {self.network!r} and generator.weights {self.weights!r}; expected both or none."
            )
        if self.of is not None and self.network:
            raise SettingError(f"generator.of and generator.network ({self.network}) are both given; expected one.")
        if self.of is None and not self.network and self.layers != (PIXELS,):
            raise SettingError(
                f"generator.layers is {self.layers} without a network; expected {PIXELS} alone, or give generator.of, "
                "or generator.network and generator.weights."
            )
        if self.of is None and (named := [name for name in self.layers if name in PREDICTED]):
            raise SettingError(f"Layer {named[0]!r} is what a trained step predicts; give generator.of.")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.of.method.predict_uses if self.of else ()

    def check(self) -> None:
        if self.network:
            networks.check_name(self.network)
        if self.of is not None and isinstance(self.of.data.pictures, Clips):
            raise SettingError(f"Step {self.of.name!r} is trained on clips; features are those of pictures.")

    def build(self, method: Method | None, read: Read) -> Generator:
        if method is not None:
            return Features(self.layers, self.pool, method, method.predict)
        if not self.network:
            return Features(self.layers, self.pool, None, lambda batch: {})
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = networks.network(self.network, _CLASSES, self.weights).eval().to(device)
        network.to(memory_format=torch.channels_last)
        mean, std = (255 * torch.tensor(values, device=device).reshape(3, 1, 1) for values in (_MEAN, _STD))

        def run(batch: Batch) -> dict[str, Tensor]:
            three_BCHW = batch["image"].expand(-1, 3, -1, -1).to(mean.dtype, memory_format=torch.channels_last)
            network((three_BCHW - mean) / std)
            return {}

        return Features(self.layers, self.pool, network, run)


class Features(Generator):
    """A column for each layer, named as it is with "_" for ".": fixed-size lists of float16, and where they were maps
    their shape C,H,W in the field's metadata.

    Values beyond 65504, the most that float16 holds, are stored as 65504. ``run`` predicts a batch through
    ``module``; both are None and nothing where pixels alone are wanted.
    """

    def __init__(
        self,
        layers: tuple[str, ...],
        pool: int,
        module: torch.nn.Module | None,
        run: Callable[[Batch], Mapping[str, Tensor]],
    ) -> None:
        self._names, self._run = layers, run
        self._predicted = [name for name in layers if name in PREDICTED]
        hooked = [name for name in layers if name not in (*PREDICTED, PIXELS)]
        self._layers = Layers(module, hooked, pool) if module is not None else None

    def __call__(self, batch: Batch) -> pa.Table:
        by_layer = {column_of(name): values for name, values in self.read(batch).items()}
        columns = {name: as_lists(values.clamp(-_MOST, _MOST)) for name, values in by_layer.items()}
        return as_table(columns, by_layer)

    def read(self, batch: Batch) -> dict[str, Tensor]:
        """The features of a batch by layer, B x ... float32. Raises SettingError for a missing layer."""
        if "image" not in batch:
            raise SettingError("Features are those of pictures; these samples are clips.")
        by_layer: dict[str, Tensor] = {}
        if self._layers is not None and self._names != (PIXELS,):
            by_layer, predicted = self._layers.read(lambda: self._run(batch), whole=bool(self._predicted))
            for name in self._predicted:
                if name not in predicted:
                    raise SettingError(f"This method predicts no {name!r}; it has {', '.join(predicted)}.")
                by_layer[name] = predicted[name].float()
        if PIXELS in self._names:
            by_layer[PIXELS] = _small(batch["image"])
        if wrong := [name for name in self._names if len(by_layer[name]) != len(batch["image"])]:
            rows = f"{len(by_layer[wrong[0]])} rows for {len(batch['image'])} pictures"
            raise SettingError(f"Layer {wrong[0]!r} gives {rows}; expected one for each.")
        return {name: by_layer[name] for name in self._names}


def column_of(layer: str) -> str:
    """The name of a layer's column."""
    return layer.replace(".", "_")


def _small(images_BCHW: Tensor) -> Tensor:
    height, width = images_BCHW.shape[2:]
    grid = min(PIXELS_SIDE, height), min(PIXELS_SIDE, width)
    small_BCHW: Tensor = torch.nn.functional.adaptive_avg_pool2d(images_BCHW.float() / 255, grid)
    return small_BCHW
