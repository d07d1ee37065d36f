"""The AnimeFace Character Dataset (Nagadomi) in its public layout.

    ROOT/thumb/000_hatsune_miku/face_128_326_108.png        faces, in a folder per character; some are empty
    ROOT/thumb/000_hatsune_miku/color.csv                   colours of hair, skin and eyes, which are not read

ROOT may also be the folder around animeface-character-dataset/, or thumb/ itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from mvray.data.readers.identities import Identities
from mvray.errors import DataError
from mvray.experiment import Index
from mvray.storage import Storage

_PLACES = ("thumb", "animeface-character-dataset/thumb")


@dataclass(frozen=True, kw_only=True)
class AnimeFace(Identities):
    """Faces of the AnimeFace Character Dataset; a class is a character, NNN_name. The settings are those of Identities.

    KLab's engineers (papers.md, section 4) use characters with 10 to 50 faces: ``min_pictures`` 10.
    """

    kind: ClassVar[str] = "animeface"
    beside: ClassVar[tuple[str, ...]] = ("color.csv",)

    @cached_property
    def storage(self) -> Storage:
        """Where the characters lie, so that keys are the same wherever that is."""
        root = self.at_root()
        root.check(write=False)
        return next((root.child(place) for place in _PLACES if root.exists(place)), root)

    def index(self) -> Index:
        folders = [entry.path for entry in self.storage.list() if entry.is_dir]
        if not any(re.match(r"\d+_", name) or name in self.split_folders for name in folders):
            raise self.no_classes()
        return super().index()

    def no_classes(self) -> DataError:
        if not self.storage.exists(""):
            return super().no_classes()
        return DataError(
            f"{self.storage.uri} is not the AnimeFace Character Dataset: found {self.listed()}; expected "
            "thumb/NNN_name/face_*.png. Point the root (--data) at the folder that holds thumb/, or read a folder per "
            "identity with --set source=identities."
        )
