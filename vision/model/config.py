"""What a model is made of: enough to build it again without its training data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vision.errors import SettingsError
from vision.model.tiling import TileGrid
from vision.preprocess import InputSpec


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of one detector.

    ``height`` and ``width`` are the input size in pixels, multiples of 32. ``classes`` are the read-out's, the good
    class first where there is one. ``reconstruction``: the model has the blocks that predict the features of a normal
    part. ``class_map``: the mask head also tells the defect classes apart per pixel. A model without a good class has
    no anomaly score, and a map only with ``class_map``: of what looks like a labelled defect. ``subspace``: whole-frame
    patterns of good frames for each stride (see ``vision.model.subspace``); 0 for none, as in models of earlier
    versions. ``guided_readout``: classes are read off where the mask head sees a defect; for models that have one, and
    not in earlier versions. ``tile_height`` and ``tile_width``: frames go through the network in overlapping tiles of
    this size (``vision.model.tiling``); 0 for frames in one piece, as in earlier versions.
    """

    backbone: str
    height: int
    width: int
    classes: tuple[str, ...]
    good_class: str | None
    reconstruction: bool
    class_map: bool
    mixer: str = "dense"
    dim: int = 192
    depth: int = 2
    heads: int = 8
    reconstruction_dim: int = 256
    reconstruction_depth: int = 4
    dropout: float = 0.2
    subspace: int = 0
    guided_readout: bool = True
    tile_height: int = 0
    tile_width: int = 0

    def __post_init__(self) -> None:
        if self.height % 32 or self.width % 32 or min(self.height, self.width) < 64:
            raise SettingsError(
                f"the input size must be multiples of 32 and at least 64; got {self.height}x{self.width}"
            )
        if self.dim % self.heads or self.reconstruction_dim % self.heads:
            raise SettingsError(f"{self.heads} heads do not divide {self.dim} and {self.reconstruction_dim} channels")
        if self.good_class is None and (self.reconstruction or self.subspace):
            raise SettingsError("a map of what is not normal needs good images; this model has no good class")
        if self.guided_readout and not self.localizes:
            raise SettingsError("a guided read-out needs a mask head; this model has neither a good class nor masks")
        if self.subspace < 0:
            raise SettingsError(f"the subspace's number of patterns must be at least 0; got {self.subspace}")
        if self.good_class is not None and self.classes[0] != self.good_class:
            raise SettingsError(f"the good class {self.good_class!r} must come first in {self.classes}")
        if bool(self.tile_height) != bool(self.tile_width):
            raise SettingsError(f"a tile has both sides or none; got {self.tile_height}x{self.tile_width}")
        _ = self.tiles  # which checks that they fit the frame

    @property
    def localizes(self) -> bool:
        """Whether the model has a mask head: good parts, or masks of labelled defects, tell it what is no defect."""
        return self.good_class is not None or self.class_map

    @property
    def tiles(self) -> TileGrid | None:
        """How frames are cut; None for frames in one piece."""
        if not self.tile_height:
            return None
        return TileGrid(self.height, self.width, self.tile_height, self.tile_width)

    @property
    def piece(self) -> tuple[int, int]:
        """Height and width in pixels of what goes through the network at once: a tile, or the frame."""
        return (self.tile_height, self.tile_width) if self.tile_height else (self.height, self.width)

    @property
    def inference_batch(self) -> int:
        """How many frames go through the model at once where it learns nothing."""
        return InputSpec(self.height, self.width).inference_batch

    @property
    def inference_piece_batch(self) -> int:
        """The same for what it looks at piece by piece, see ``piece``."""
        return InputSpec(*self.piece).inference_batch

    @property
    def defect_classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.classes if name != self.good_class)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of ``as_dict``; what an earlier version wrote has no guided read-out."""
        return cls(**{"guided_readout": False, **values, "classes": tuple(values["classes"])})
