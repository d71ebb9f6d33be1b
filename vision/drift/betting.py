"""From "how unusual is this frame?" to evidence that something has changed, with a bound on false alarms.

**p-values.** The randomised conformal p-value of the n-th value x_n among all values before it,

    u_n = (#{i < n: x_i < x_n} + θ_n · (1 + #{i < n: x_i = x_n})) / n,   θ_n uniform in 0..1,

is uniform in 0..1 and independent of the earlier ones as long as all values are exchangeable, whatever their
distribution (Vovk, Nouretdinov, Gammerman, *Testing exchangeability on-line*, ICML 2003; with values that an earlier,
separate set of frames has made comparable: Volkhonskiy et al., *Inductive conformal martingales for change-point
detection*, COPA 2017).

**Bets.** A density f on 0..1 is a bet at fair odds: E[f(u_n)] = 1 while nothing has changed. Several are kept for each
signal, for small and large changes upwards and downwards; all are steps on the cells of ``EDGES``, so that their mean
is exactly 1.

**Evidence.** The Shiryaev-Roberts statistic of each bet, R_n = (1 + R_{n−1}) · f(u_n), adds up what bets begun at
every earlier frame would have won; the signal's evidence is their weighted mean (Vovk et al., *Retrain or not retrain:
conformal test martingales for change-point detection*, COPA 2021). R_n − n is a martingale. Resetting R to 0 whenever
it reaches c therefore gives at most N / c false alarms in N frames on average: with A alarms so far, R_n + c·A_n − n
can only fall in expectation. (Ville's inequality for one bet begun at one frame, P(ever reaching c) ≤ 1/c, is the case
of one summand.)
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vision.types import FloatArray

_NORMAL = NormalDist()
# Cells of equal width on the normal scale: fine in the tails, where changes show first.
_Z = np.arange(-3.2, 3.21, 0.2)
EDGES = np.array([_NORMAL.cdf(z) for z in _Z])
"""Inner borders of the cells of 0..1, ascending."""
_BORDERS = np.concatenate([[0.0], EDGES, [1.0]])
_WIDTHS = np.diff(_BORDERS)
# Changes in spreads: a large one is found in a few frames, a small one in some fifty, one below a quarter never.
SMALL_AND_LARGE, LARGE = (0.5, 1.0, 2.0, 3.0), (1.0, 2.0, 3.0)
# A mixture of levels that moves: values beyond all earlier ones at one end (so many times as often in this share), and
# the other end empty.
_ENDS = ((0.02, 8.0), (0.05, 4.0))
_EMPTY_SHARE, _EMPTY_ODDS = 0.15, 0.15
# A few frames far out, and the others as before: some parts in a hundred are defective.
_OUTLIERS = ((0.01, 10.0), (0.03, 5.0))


def bets_on_shifts(shifts: tuple[float, ...]) -> FloatArray:
    """Odds on higher values, float32 ``[bets, len(EDGES) + 1]``; read backwards, these are odds on lower ones.

    Args:
        shifts: of normal values, in standard deviations.
    """
    return np.array([_shifted(shift) for shift in shifts], np.float32)


def bets_on_ends() -> FloatArray:
    """Likewise, on values beyond one end of what there was, and an empty other end."""
    return np.array([_end(share, odds, _EMPTY_ODDS) for share, odds in _ENDS], np.float32)


def bets_on_outliers() -> FloatArray:
    """Likewise, on a few values far out."""
    return np.array([_end(share, odds, 1.0) for share, odds in _OUTLIERS], np.float32)


def _shifted(shift: float) -> FloatArray:
    """exp(δz − δ²/2) for u = Φ(z), averaged over each cell."""
    cdf = np.array([0.0, *(_NORMAL.cdf(z - shift) for z in _Z), 1.0])
    return _fair(np.diff(cdf) / _WIDTHS)


def _end(share: float, odds: float, empty_odds: float) -> FloatArray:
    upper = np.clip((_BORDERS[1:] - (1.0 - share)) / _WIDTHS, 0.0, 1.0)
    lower = np.clip((_EMPTY_SHARE - _BORDERS[:-1]) / _WIDTHS, 0.0, 1.0)
    return _fair((1.0 + (odds - 1.0) * upper) * (1.0 - (1.0 - empty_odds) * lower))


def _fair(odds: NDArray[np.float64]) -> FloatArray:
    return (odds / (odds @ _WIDTHS)).astype(np.float32)
