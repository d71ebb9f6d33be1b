"""Which token mixer a model has: what `--mixer` says, or what the number of tokens says."""

from __future__ import annotations

from vision.model.mixers import MIXERS

CHOICES = ("auto", *MIXERS)
# Attention between all pairs of so many tokens is a small share of a frame's time; of four times as many it is most of
# it (docs/experiments.md, "Token mixers").
_MOST_DENSE = 1024
_TOKEN_PX = 16


def choose_mixer(asked: str, piece: tuple[int, int]) -> tuple[str, str]:
    """The mixer of a model, and the reason in words where it is not the usual one.

    Args:
        asked: one of ``CHOICES``. ``auto`` is ``dense`` for pieces of up to 1,024 tokens of 16x16 px (512x512 px), and
            ``sparse`` for larger ones.
        piece: height and width in px of what goes through the network at once: a tile, or the frame.
    """
    if asked != "auto":
        return asked, ""
    height, width = piece
    tokens = (height // _TOKEN_PX) * (width // _TOKEN_PX)
    if tokens <= _MOST_DENSE:
        return "dense", ""
    return "sparse", f"sparse attention, since {width}x{height} px are {tokens:,} tokens (--mixer dense for all pairs)"
