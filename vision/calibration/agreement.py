"""How far two judges agree beyond chance: Cohen's kappa with its interval.

Sources: Cohen, *A coefficient of agreement for nominal scales*, Educational and Psychological Measurement 20 (1960);
the interval's standard error: Fleiss, Cohen, Everitt, *Large sample standard errors of kappa and weighted kappa*,
Psychological Bulletin 72 (1969), equation 13.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vision.calibration.intervals import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Agreement:
    """``kappa``: 1 is full agreement, 0 that of chance; None where it is not defined, as with no pairs, or with judges
    who both always said the same one thing. ``agreed`` of ``of`` pairs were the same.
    """

    agreed: int
    of: int
    kappa: float | None
    low: float | None
    high: float | None


def cohens_kappa(pairs: Mapping[tuple[Hashable, Hashable], int], confidence: float = CONFIDENCE) -> Agreement:
    """Kappa of pairs of judgements, counted.

    Args:
        pairs: how often the first judge said the one, and the second the other.
    """
    words = sorted({word for pair in pairs for word in pair}, key=repr)
    table = np.array([[pairs.get((one, other), 0) for other in words] for one in words], np.float64).reshape(
        len(words), len(words)
    )
    total = int(table.sum())
    agreed = int(np.trace(table))
    if not total:
        return Agreement(0, 0, None, None, None)
    shares = table / total
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    observed, chance = float(np.trace(shares)), float(rows @ columns)
    if math.isclose(chance, 1.0):
        return Agreement(agreed, total, None, None, None)
    kappa = (observed - chance) / (1 - chance)
    diagonal = np.diag(shares) * (1 - (rows + columns) * (1 - kappa)) ** 2
    crossed = shares * (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * float(crossed.sum() - np.trace(crossed))
    variance = (float(diagonal.sum()) + off - (kappa - chance * (1 - kappa)) ** 2) / (total * (1 - chance) ** 2)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(max(0.0, variance))
    return Agreement(agreed, total, kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach))
