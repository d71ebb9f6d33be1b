"""How far is one unit? Distances to good frames are counted in deviations of good frames, never in rounding."""

from __future__ import annotations

from torch import Tensor

# Share of the ordinary deviation that a unit has at least. A backbone can be (nearly) silent on good frames in one of
# its channels, or, once trained, draw good frames together until nothing of them is left beside their patterns; in
# units of that, a distance would be what float16 and float32 round off.
SMALLEST_UNIT = 0.02


def channel_units(deviations: Tensor) -> Tensor:
    """Standard deviations on good frames ``[C]``, each at least ``SMALLEST_UNIT`` of their mean (and above 0)."""
    return deviations.clamp(min=max(SMALLEST_UNIT * float(deviations.mean()), 1e-6))
