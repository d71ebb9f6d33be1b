"""What a command line asks of an operating point; `calibrate` and `whatif` ask alike."""

from __future__ import annotations

from vision.calibration.choose import Asked, MaxOverkill, MinRecall
from vision.calibration.cost import Costs
from vision.calibration.intervals import CONFIDENCE
from vision.errors import SettingsError

_PRICES = ("overkill", "escape", "review")


def read_asked(
    *,
    max_overkill: float | None,
    min_recall: float | None,
    cost: str | None,
    confidence: float | None,
    defect_rate: float | None,
) -> Asked:
    """The one rule that was given.

    Raises:
        SettingsError: none, several, or an option that does not go with it.
    """
    given = [
        name
        for name, value in (("max-overkill", max_overkill), ("min-recall", min_recall), ("cost", cost))
        if value is not None
    ]
    if len(given) != 1:
        raise SettingsError(
            "ask for exactly one of --max-overkill SHARE, --min-recall SHARE and --cost overkill=1,escape=50; got "
            + (", ".join(f"--{name}" for name in given) or "none")
        )
    if defect_rate is not None and cost is None:
        raise SettingsError("--defect-rate weighs good parts against defective ones, which only --cost does")
    if confidence is not None and cost is not None:
        raise SettingsError("--confidence goes with --max-overkill and --min-recall; a cost is no bound")
    if max_overkill is not None:
        return MaxOverkill(max_overkill, confidence)
    if min_recall is not None:
        if not 0.0 < min_recall < 1.0:
            raise SettingsError(f"a recall to be promised lies between 0 and 1, both excluded; got {min_recall:g}")
        return MinRecall(min_recall, CONFIDENCE if confidence is None else confidence)
    return Costs(**_prices(cost or ""), defect_rate=defect_rate)


def _prices(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        try:
            price = float(value)
        except ValueError:
            name = ""
        if name.strip() not in _PRICES or name.strip() in found:
            raise SettingsError(f"--cost takes overkill=PRICE,escape=PRICE[,review=PRICE], each once; got {text!r}")
        found[name.strip()] = price
    if missing := [name for name in ("overkill", "escape") if name not in found]:
        raise SettingsError(f"--cost needs a price of {' and '.join(missing)} too; got {text!r}")
    return found
