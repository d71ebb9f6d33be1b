"""Learning in two rounds: from the training images, and once everything is chosen, from the validation images as well.

The parts that labelled defects were seen on are few, and those of validation are missed: on new parts their absence
costs more than anything that validation chooses (docs/decisions/0033).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import Accelerator

from training.batches import shown
from training.calibrate import Fitted, fit_on_validation
from training.loop import Trainer
from training.options import Recipe, TrainOptions
from training.stores import FrameStore, Joined, Store
from training.subspace import fit_subspace
from training.tiles import pieces, training_store
from training.validate import Validation
from vision.console import say
from vision.model.detector import Detector

SECOND = "second"
# A second round that shows fewer pictures begins with a lower learning rate where the whole network is trained: 1,248
# were enough to come down from the whole one, 400 were not (docs/experiments.md, "Few images").
_SHOWN_AT_THE_WHOLE_RATE = 1280


@dataclass(frozen=True, slots=True)
class Learned:
    """``fitted`` on validation frames before the model learned from them; ``best_epoch``, the one that was taken, and
    ``validation`` (its figure) are of the first round, ``epochs`` and ``seconds`` of both.
    """

    fitted: Fitted
    best_epoch: int
    validation: float
    epochs: int
    seconds: float


class Rounds:
    """Both rounds of one run.

    Args:
        stores: ``train`` and ``validation``.
        cuts: training sees single tiles.
        good_stand_for: see ``fit_on_validation``.
        run: the run's folder; the second round has one in it.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        options: TrainOptions,
        stores: Mapping[str, FrameStore],
        accelerator: Accelerator,
        *,
        cuts: bool,
        good_stand_for: int,
        run: Path,
    ) -> None:
        self._detector, self._recipe, self._options = detector, recipe, options
        self._train, self._validation = stores["train"], stores["validation"]
        self._accelerator, self._cuts, self._run = accelerator, cuts, run
        self._good_stand_for = good_stand_for

    def learn(self, *, resume: bool) -> Learned:
        """Train; what is there already is not done again with ``resume``.

        Afterwards the detector has its combination and a subspace of all that it learned from.
        """
        detector, config = self._detector, self._detector.config
        validation = Validation(self._validation, config, self._recipe, self._options.seed)
        shown_first = self._pictures(self._train)
        planned = self._recipe.epochs, self._recipe.epochs_again
        epochs, again = (self._long_enough(count, shown_first) for count in planned)
        if (epochs, again) != planned:
            say(
                f"few images: {epochs} + {again} epochs in place of {planned[0]} + {planned[1]}, so that a round shows "
                f"{self._recipe.least_shown} pictures"
            )
        first = self._trainer(shown_first, epochs, validation, self._run, later=again).fit(resume=resume)
        too_high = self._shown_too_often(self._train)
        detector.readout.lower(too_high)
        foreseen = fit_subspace(detector, pieces([self._train], config))
        if any(sample.label != config.good_class for sample in self._train.samples):
            foreseen = None  # a mask head that has seen real defects knows more than the subspace
        fitted = fit_on_validation(
            detector, self._recipe, self._validation, foreseen=foreseen, good_stand_for=self._good_stand_for
        )
        if not again:
            return Learned(fitted, first.best_epoch, first.best, first.epoch, first.seconds)
        detector.readout.lower([-logit for logit in too_high])
        both = Joined([self._train, self._validation])
        pictures = self._pictures(both)
        rate = self._rate_again(again, pictures)
        lower = f", from {rate:.0%} of the learning rate on, since they show few" if rate < 1 else ""
        say(f"everything is chosen: {again} more epochs, with the {len(self._validation)} validation images{lower}")
        # The combination was fitted with the statistics of the first round.
        trainer = self._trainer(pictures, again, None, self._run / SECOND, rate=rate)
        second = trainer.fit(resume=resume, measure=False)
        detector.readout.lower(self._shown_too_often(both))
        fit_subspace(detector, pieces([self._train, self._validation], config))
        if fitted.probabilities is not None:
            source = "validation images, before the model learned from them as well"
            fitted = replace(fitted, probabilities=replace(fitted.probabilities, source=source))
        epochs, seconds = first.epoch + second.epoch, first.seconds + second.seconds
        return Learned(fitted, first.best_epoch, first.best, epochs, seconds)

    def _pictures(self, frames: Store) -> Store:
        return training_store(frames, self._detector.config, self._options.seed, cuts=self._cuts)

    def _long_enough(self, epochs: int, pictures: Store) -> int:
        """More epochs than planned where these would show fewer pictures than a round does at the least; 0 stays 0."""
        return max(epochs, -(-self._recipe.least_shown // len(pictures))) if epochs else 0

    def _rate_again(self, epochs: int, pictures: Store) -> float:
        """Share of the usual learning rate that the second round begins with: from all of it too short a round would
        unlearn what the first has taught (docs/decisions/0039).
        """
        return min(1.0, epochs * len(pictures) / _SHOWN_AT_THE_WHOLE_RATE) if self._recipe.tune_backbone else 1.0

    def _trainer(
        self,
        pictures: Store,
        epochs: int,
        validation: Validation | None,
        run: Path,
        *,
        later: int = 0,
        rate: float = 1.0,
    ) -> Trainer:
        recipe = replace(
            self._recipe,
            epochs=epochs,
            learning_rate=rate * self._recipe.learning_rate,
            backbone_learning_rate=rate * self._recipe.backbone_learning_rate,
        )
        return Trainer(self._detector, recipe, self._options, pictures, validation, run, self._accelerator, later)

    def _shown_too_often(self, frames: Store) -> list[float]:
        """Rare classes were shown more often than they are, and their logits are too high by the logarithm of how much
        (Elkan, The Foundations of Cost-Sensitive Learning, 2001). How rare a class of a few images is, nobody knows.
        """
        config = self._detector.config
        if not self._recipe.tune_backbone or self._cuts:
            return [0.0] * len(config.classes)
        often = shown(frames.samples, config.good_class, self._recipe.copy_paste)
        return [math.log(often.get(name, 1.0)) for name in config.classes]
