"""How many epochs a training has in each of its rounds, at what learning rate, and which one is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.images import make_folder
from training.data import read_data
from training.loop import Progress, Trainer, time_left
from training.options import TrainOptions, choose_recipe
from training.run import train_run
from training.splits import split


def test_the_time_left_counts_every_epoch_to_come() -> None:
    progress = Progress(epoch=2, seconds=240.0)
    assert time_left(progress, 12) == "; about 24 min of training left"
    assert time_left(progress, 0) == ""


@pytest.mark.parametrize(
    ("labels", "masks", "asked", "rounds", "last"),
    [
        ({"good": 20, "crack": 60}, True, {}, (10, 4), False),
        ({"good": 20, "crack": 60}, False, {}, (5, 9), True),
        ({"good": 20, "crack": 60}, False, {"patience": 3}, (5, 9), False),
        ({"good": 20, "crack": 60}, False, {"preset": "fast"}, (3, 4), True),
        ({"good": 20, "crack": 60}, False, {"epochs": 4}, (2, 4), True),
        ({"good": 20, "crack": 60}, False, {"epochs": 1}, (1, 1), True),
        ({"crack": 16, "fray": 16}, False, {}, (10, 4), False),
        ({"crack": 16, "fray": 16}, False, {"preset": "fast"}, (5, 2), False),
        ({"crack": 16, "fray": 16}, True, {}, (10, 4), False),
        ({"good": 20, "crack": 6}, True, {}, (4, 2), False),
        ({"good": 20, "crack": 6}, False, {}, (4, 2), False),
        ({"good": 20}, False, {}, (4, 0), False),
    ],
)
def test_with_image_labels_alone_and_good_parts_most_epochs_are_of_the_round_that_sees_all_images(
    tmp_path: Path, labels: dict[str, int], masks: bool, asked: dict[str, Any], rounds: tuple[int, int], last: bool
) -> None:
    data = read_data(make_folder(tmp_path, train=labels, masks=masks))
    recipe = choose_recipe(data, split(data, 0), TrainOptions(**asked))
    assert (recipe.epochs, recipe.epochs_again) == rounds
    assert recipe.takes_last == last


@pytest.mark.parametrize(
    ("labels", "asked", "rounds", "rate"),
    [
        # A round of the usual length shows 2,560 pictures; 32 of these 40 are for training, and 256 of the 320.
        ({"crack": 20, "fray": 20}, {}, [80, 80], 1.0),
        ({"crack": 20, "fray": 20}, {"batch": 16}, [80, 80], 1.0),
        ({"crack": 20, "fray": 20}, {"preset": "fast"}, [40, 40], 1.0),
        ({"crack": 20, "fray": 20}, {"epochs": 10}, [10, 4], 160 / 1280),
        ({"crack": 20, "fray": 20}, {"epochs": 10, "batch": 16}, [10, 4], 160 / 1280),
        ({"crack": 20, "fray": 20}, {"epochs": 2, "preset": "fast"}, [2, 1], 40 / 1280),
        ({"crack": 160, "fray": 160}, {}, [10, 10], 1.0),
        ({"crack": 160, "fray": 160}, {"preset": "fast"}, [5, 5], 1.0),
        ({"crack": 160, "fray": 160}, {"epochs": 10}, [10, 4], 1.0),
        ({"crack": 160, "fray": 160}, {"epochs": 5}, [5, 2], 640 / 1280),
        # Beside a frozen backbone more steps gained nothing, and less of the rate was not tried.
        ({"good": 20, "crack": 6}, {}, [4, 2], 1.0),
    ],
)
def test_a_round_of_few_images_has_more_epochs_or_a_lower_rate_where_a_number_was_asked_for(
    tmp_path: Path,
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    labels: dict[str, int],
    asked: dict[str, Any],
    rounds: list[int],
    rate: float,
) -> None:
    trained: list[int] = []
    rates: list[list[float]] = []

    def not_trained(self: Trainer, **_: bool) -> Progress:
        trained.append(self._recipe.epochs)
        rates.append(self._base_rates)
        return Progress(epoch=trained[-1], best_epoch=1, seconds=1.0)

    monkeypatch.setattr(Trainer, "fit", not_trained)
    data = read_data(make_folder(tmp_path / "data", train=labels))
    run = train_run(data, replace(options, **{"epochs": None, **asked}), tmp_path / "run", resume=False)
    assert trained == rounds
    assert run.figures["epochs"] == sum(rounds)
    usual = [1e-3] if "good" in labels else [1e-3, 5e-4]
    assert rates == [usual, pytest.approx([rate * one for one in usual])]
    said = capsys.readouterr().err
    assert (f"from {rate:.0%} of the learning rate on" in said) == (rate < 1)
    assert ("few images: " in said) == (rounds[1] not in (1, 2, 4))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "masks", "patience", "taken"),
    [(6, False, None, 3), (6, False, 1, 1), (3, True, None, 1)],
    ids=["the last of labels alone", "the best until an early end", "the best with masks"],
)
def test_which_epoch_is_taken_where_validation_falls_from_the_first_on(
    tmp_path: Path,
    options: TrainOptions,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    masks: bool,
    patience: int | None,
    taken: int,
) -> None:
    falling = iter((0.9, 0.8, 0.7))
    monkeypatch.setattr("training.validate.Validation.measure", lambda *_: (next(falling), {}))
    kept: dict[int, torch.Tensor] = {}
    real = Trainer._epoch

    def watched(self: Trainer, progress: Progress, writer: Any) -> Progress:
        following = real(self, progress, writer)
        kept.setdefault(following.epoch, self.detector.readout.bias.detach().clone())  # of the first round
        return following

    begun: list[torch.Tensor] = []
    real_fit = Trainer.fit

    def ended(self: Trainer, **given: bool) -> Progress:
        progress = real_fit(self, **given)
        begun.append(self.detector.readout.bias.detach().clone())
        return progress

    monkeypatch.setattr(Trainer, "_epoch", watched)
    monkeypatch.setattr(Trainer, "fit", ended)
    root = make_folder(tmp_path / "data", train={"good": 40, "crack": 48}, masks=masks)
    asked = replace(options, epochs=epochs, patience=patience)
    run = train_run(read_data(root), asked, tmp_path / "run", resume=False)
    assert run.figures["best_epoch"] == taken
    assert run.figures["validation"] == [0.9, 0.8, 0.7][taken - 1]
    assert torch.equal(begun[0], kept[taken])
    assert not torch.equal(kept[1], kept[max(2, taken)])
