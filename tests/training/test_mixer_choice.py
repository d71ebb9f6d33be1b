"""Small inputs attend to all pairs of tokens, large ones within windows, unless somebody says otherwise."""

from __future__ import annotations

import pytest

from training.mixer_choice import choose_mixer
from training.options import TrainOptions


@pytest.mark.parametrize(
    ("piece", "mixer"),
    [((288, 352), "dense"), ((512, 512), "dense"), ((256, 1600), "sparse"), ((1024, 1024), "sparse")],
)
def test_a_mixer_is_chosen_by_the_tokens_of_a_piece(piece: tuple[int, int], mixer: str) -> None:
    chosen, why = choose_mixer(TrainOptions().mixer, piece)
    assert chosen == mixer
    assert ("--mixer dense" in why) == (mixer == "sparse")
    assert choose_mixer("linear", piece) == ("linear", "")
