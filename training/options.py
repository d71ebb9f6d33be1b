"""What a training run was asked for, and what the data made of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from training.data import DataSet
from training.masks import ENOUGH_MASKED, masked_share
from training.splits import Split
from training.tile_choice import AUTO, OFF, check_side
from vision.errors import SettingsError
from vision.model.backbone import DEFAULT_BACKBONE

Device = Literal["auto", "cpu", "cuda"]

# From this many labelled defects on, the backbone is trained too; fewer would overfit it.
_ENOUGH_TO_TUNE = 40
# More patterns of good frames than this gained nothing, and they are most of a bundle's size.
_MOST_PATTERNS = 256
# A few labelled defects are copied to this share of the good frames, where they are enough that each makes up no more
# than this; synthetic ones keep in sight what is unlike any of them.
_COPIES, _COPIES_OF_ONE = 0.5, 0.025
# Where the whole network is trained: the share, and from how many masked defects on it gained nothing.
_COPIES_TUNED, _MANY_MASKED = 0.3, 150
# Beside many labelled defects, the patterns of fewer good frames would be the frames themselves.
_FEWEST_PATTERNED = 40
# Epochs of both rounds, for one of the usual ones; and the share of the usual ones that the first round takes where
# there are good parts and labels say nothing of places. Good parts are told from defective ones the better the longer
# all images teach; maps lose a little by it, and the classes of defects alone gain nothing (docs/decisions/0033).
_BOTH_ROUNDS, _FIRST_WITHOUT_MASKS = 1.4, 0.5
# Pictures that a round shows in which the whole network is trained: 160 steps, by the balanced preset. Four epochs of a
# hundred images were 28, from a high learning rate down again, and unlearned what ten had taught (docs/decisions/0039).
_LEAST_SHOWN = 2560

_WITHOUT_GOOD = {
    True: "classes, and places from the masks, but no anomaly score",
    False: "classes alone; masks of half of the images, and some of each class, would show places too",
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A place between time and accuracy. ``size``: the largest input chosen for a frame, as in ``TrainOptions``;
    ``epochs``: how many times as many epochs as usual.
    """

    size: int
    epochs: float


PRESETS = {"fast": Preset(224, 0.5), "balanced": Preset(320, 1.0), "accurate": Preset(448, 1.5)}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """Options of one run; ``None`` leaves a choice to the data, within what ``preset`` allows. ``size`` is the side of
    the square with as many pixels as the input, in pixels; ``tile`` is ``auto``, ``off`` or the most pixels of a tile's
    side; ``batch`` counts frames.
    """

    backbone: str = DEFAULT_BACKBONE
    weights: str | None = None
    preset: str = "balanced"
    size: int | None = None
    tile: str = AUTO
    epochs: int | None = None
    batch: int = 16
    seed: int = 0
    device: Device = "auto"
    flips: bool | None = None
    mixer: str = "auto"
    heads: int = 8
    patience: int | None = None
    reconstruction: bool = False

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SettingsError(f"--preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        if self.size is not None and not 64 <= self.size <= 2048:
            raise SettingsError(f"--size must be in 64..2048 px; got {self.size}")
        if self.tile not in (AUTO, OFF):
            check_side(self.tile)
        if self.epochs is not None and self.epochs < 1:
            raise SettingsError(f"--epochs must be at least 1; got {self.epochs}")
        if self.batch < 4 or self.batch % 2:
            raise SettingsError(f"--batch must be even and at least 4; got {self.batch}")
        if self.patience is not None and self.patience < 1:
            raise SettingsError(f"--patience must be at least 1; got {self.patience}")

    def epochs_of(self, usual: int) -> int:
        """As many epochs as were asked for, or the usual number times what the preset says."""
        return self.epochs or max(1, round(usual * PRESETS[self.preset].epochs))

    def least_shown(self) -> int:
        """Pictures in a round of the whole network; 0 where a number of epochs was asked for, which is then kept to."""
        return 0 if self.epochs else round(_LEAST_SHOWN * PRESETS[self.preset].epochs)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train, chosen from what the data allow; the same rule for every data set.

    ``epochs`` and ``epochs_again``: of the first round and of the second, in which validation images teach too (see
    ``training.rounds``; 0 where they hold no labelled defect); a round has more of them where these would show
    fewer than ``least_shown`` pictures. ``takes_last``: the last epoch of the first round is taken, where the learning
    rate has come down; else validation chooses one.
    ``tune_backbone``: the CNN is trained too (enough labelled defects), else its frozen features are computed once an
    epoch and used ``passes`` times. ``reconstruction``: learn normal features (frozen backbone and good images).
    ``subspace``: how many patterns of good frames to solve for after training; 0 for none.
    ``synthetic``: every good image also appears with a synthetic defect. ``copy_paste``: in this share of the cases,
    with a labelled one of another image instead; without synthetic defects, instead of appearing as good.
    ``why`` says it in words.
    """

    tune_backbone: bool
    reconstruction: bool
    subspace: int
    synthetic: bool
    copy_paste: float
    class_map: bool
    flips: bool
    epochs: int
    epochs_again: int
    least_shown: int
    takes_last: bool
    passes: int
    learning_rate: float
    backbone_learning_rate: float
    augmentation: float
    why: str


def choose_recipe(data: DataSet, split: Split, options: TrainOptions) -> Recipe:
    """The recipe for a data set, from its labels and masks alone."""
    defects = [sample for sample in split.train if sample.label != data.good_class]
    masked = sum(sample.mask is not None for sample in defects)
    good = len(split.train) - len(defects)
    counted = f"{good} good and {len(defects)} defective images ({masked} with masks)"
    labelled = len(defects) >= _ENOUGH_TO_TUNE or data.good_class is None
    more_to_learn = any(sample.label != data.good_class for sample in split.validation)
    if labelled:
        usual = options.epochs_of(10)
        # Without a good image, masks alone say what is no defect.
        localised = masked > 0 and (data.good_class is not None or masked_share(defects) >= ENOUGH_MASKED)
        good_without_masks = not localised and data.good_class is not None and more_to_learn
        first = math.ceil(_FIRST_WITHOUT_MASKS * usual) if good_without_masks else usual
        few_masks = data.good_class is not None and 0 < masked < _MANY_MASKED
        return Recipe(
            tune_backbone=True,
            reconstruction=False,
            subspace=min(_MOST_PATTERNS, good // 2) if data.good_class and good >= _FEWEST_PATTERNED else 0,
            synthetic=False,
            copy_paste=_COPIES_TUNED if few_masks else 0.0,
            class_map=localised,
            flips=True if options.flips is None else options.flips,
            epochs=first,
            epochs_again=_epochs_again(usual, first) if more_to_learn else 0,
            least_shown=options.least_shown(),
            # Who asks for an early end wants the best epoch until then: the learning rate has not come down.
            takes_last=good_without_masks and options.patience is None,
            passes=1,
            learning_rate=1e-3,
            backbone_learning_rate=5e-4,
            augmentation=1.0,
            why=f"{counted}: enough labelled defects to train the whole network"
            + (", copied to other parts as well" if few_masks else "")
            + ("" if data.good_class else f"; no good part: {_WITHOUT_GOOD[localised]}"),
        )
    usual = options.epochs_of(4)
    return Recipe(
        tune_backbone=False,
        reconstruction=options.reconstruction,
        subspace=min(_MOST_PATTERNS, good // 2),
        synthetic=True,
        copy_paste=min(_COPIES, masked * _COPIES_OF_ONE),
        class_map=masked > 0,
        flips=bool(options.flips),
        epochs=usual,
        epochs_again=_epochs_again(usual, usual) if more_to_learn else 0,
        least_shown=0,
        takes_last=False,
        passes=4,
        learning_rate=1e-3,
        backbone_learning_rate=0.0,
        augmentation=0.3,
        why=f"{counted}: frozen backbone, subspace of good frames, synthetic defects"
        + (", labelled ones copied to other parts" if masked else "")
        + (", reconstruction of normal features" if options.reconstruction else ""),
    )


def _epochs_again(usual: int, first: int) -> int:
    return max(1, round(_BOTH_ROUNDS * usual) - first)
