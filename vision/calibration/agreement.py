"""How far two judges agree beyond chance: Cohen's kappa with its interval.

Sources: Cohen, *A coefficient of agreement for nominal scales*, Educational and Psychological Measurement 20 (1960);
the interval's standard error: Fleiss, Cohen, Everitt, *Large sample standard errors of kappa and weighted kappa*,
Psychological Bulletin 72 (1969), equation 13.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vision.calibration.intervals import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Agreement:
    """``kappa``: 1 is full agreement, 0 that of chance; None without pairs, and where one of the judges always said the
    same thing: it is 0 then (or not defined), whatever the other one said, and tells nothing. ``agreed`` of ``of``
    pairs were the same.
    """

    agreed: int
    of: int
    kappa: float | None
    low: float | None
    high: float | None


def cohens_kappa(pairs: Mapping[Any, int], confidence: float = CONFIDENCE) -> Agreement:
    """Kappa of pairs of judgements, counted.

    Args:
        pairs: by what the first judge said and what the second one did (a pair), how often.
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
    if max(float(rows.max()), float(columns.max())) == 1.0:
        return Agreement(agreed, total, None, None, None)
    kappa = (observed - chance) / (1 - chance)
    diagonal = np.diag(shares) * (1 - (rows + columns) * (1 - kappa)) ** 2
    crossed = shares * (columns[:, None] + rows[None, :]) ** 2
    off = (1 - kappa) ** 2 * float(crossed.sum() - np.trace(crossed))
    variance = (float(diagonal.sum()) + off - (kappa - chance * (1 - kappa)) ** 2) / (total * (1 - chance) ** 2)
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(max(0.0, variance))
    return Agreement(agreed, total, kappa, max(-1.0, kappa - reach), min(1.0, kappa + reach))
