"""What distances to good frames are counted in: deviations of good frames, and never rounding."""

from __future__ import annotations

from torch import Tensor

# As a share of the ordinary deviation. A backbone can be (nearly) silent on good frames in one of its channels, or,
# once trained, draw good frames together until nothing of them is left beside their patterns; counted in deviations
# like these, a distance would be what float16 and float32 round off.
SMALLEST_DEVIATION = 0.02


def channel_scales(deviations: Tensor) -> Tensor:
    """Standard deviations on good frames ``[C]``, each at least ``SMALLEST_DEVIATION`` of their mean (and above 0)."""
    return deviations.clamp(min=max(SMALLEST_DEVIATION * float(deviations.mean()), 1e-6))
