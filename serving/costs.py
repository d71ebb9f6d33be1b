"""What things take on this very machine: measured all the time, so that the scheduler need not guess."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import exp2, inf
from statistics import median_low

# The share of a new measurement in the estimate.
_WEIGHT = 0.2
# A measurement that is never repeated loses half of its excess over the lowest one in this time. Without it a slow
# moment would be held against a batch size for ever: what looks too slow is not run, and so never measured again.
_HALF_LIFE_S = 1.0
# In this time it loses less than a thousandth.
_READ_S = 0.001
# A larger batch has to be cheaper a frame by more than this share: the frames in it wait for each other.
_WORTH_IT = 0.03
# Of frames with a deadline that are let in, so many may be lost. One that is lost makes the promises to the next ones
# longer by this share, and it takes 1 / _LOST frames in time to come back.
_LOST = 0.002
_OVERRUN_STEP = 0.1
_MOST_OVERRUN = 1.0
# A frame is close to its deadline if it was promised, with the margin, to take this share of its time.
_CLOSE = 0.6
# What the event loop spends on a batch beside its frames: the way to the engine's thread and back.
_BATCH_S = 0.0002
# Three average distances from the estimate: of 100 measurements that scatter as errors do, one lies beyond. At most a
# half, or a machine that stutters would let nobody in.
_MARGIN = 3.0
_MOST_MARGIN = 0.5
# Promises begin with this margin where costs are those of a rehearsal.
_FIRST_OVERRUN = 0.5
# In doublings: far beyond any deadline, and far below what overflows.
_LONG = 100.0
# For how long a curve may be used again while nothing new is measured.
_CURVE_S = 0.05


class Duration:
    """A running estimate of how long something takes, in seconds; 0 before the first measurement.

    It is the exponential average over medians of the last three measurements: one outlier, whichever way, is not seen.
    """

    __slots__ = ("_clock", "_last", "_lowest", "_mean", "_read", "_read_at", "_recent")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._recent: deque[float] = deque(maxlen=3)
        self._mean = self._lowest = 0.0
        self._last = clock()
        self._read, self._read_at = 0.0, -inf

    @property
    def known(self) -> bool:
        return bool(self._recent)

    @property
    def age(self) -> float:
        """Seconds since the last measurement; a clock that was set back makes none of them younger than new."""
        return max(0.0, self._clock() - self._last)

    def observe(self, seconds: float) -> None:
        """Take in one measurement; a negative one only says that the clock was set back, which is nothing."""
        if seconds < 0:
            return
        first = not self._recent
        self._recent.append(seconds)
        middle = median_low(self._recent)
        if first:
            self._mean = self._lowest = middle
        else:
            mean = self.value
            self._mean = mean + _WEIGHT * (middle - mean)
            self._lowest = min(self._lowest, middle)
        self._last = self._clock()
        self._read_at = -inf

    @property
    def value(self) -> float:
        now = self._clock()
        if not 0.0 <= now - self._read_at < _READ_S:  # asked for tens of times a frame
            excess = self._mean - self._lowest
            decay = exp2(-max(0.0, now - self._last) / _HALF_LIFE_S) if excess > 0 else 0.0
            self._read, self._read_at = self._lowest + excess * decay, now
        return self._read


class Usage:
    """How much has been had of late: a count that halves every second."""

    __slots__ = ("_amount", "_clock", "_since")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._amount = 0.0
        self._since = clock()

    @property
    def value(self) -> float:
        return self._amount * exp2(-max(0.0, self._clock() - self._since) / _HALF_LIFE_S)

    def add(self, amount: float) -> None:
        """Negative to take back what was not had after all."""
        self._amount = max(0.0, self.value + amount)
        self._since = self._clock()


class Tightest:
    """The shortest of late: without another one as short it doubles every second. Infinite before the first."""

    __slots__ = ("_clock", "_since", "_value")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._value = inf
        self._since = clock()

    @property
    def value(self) -> float:
        return self._value * exp2(min(_LONG, max(0.0, self._clock() - self._since) / _HALF_LIFE_S))

    def observe(self, seconds: float) -> None:
        if seconds <= self.value:
            self._value, self._since = seconds, self._clock()


class Overrun:
    """By which share of the time promised things may take longer, so that all but ``_LOST`` of the frames that are let
    in are answered in time.

    It follows what becomes of the frames, step by step, so that no model of the machine's noise has to be right.
    Source: adaptive conformal inference (Gibbs and Candès 2021, eq. 2).
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def rehearsed(self) -> None:
        """Begin with a margin: costs were measured, but not beside the work that is to come."""
        self.value = _FIRST_OVERRUN

    def observe(self, promised_s: float, budget_s: float, *, lost: bool) -> None:
        """What became of a frame that was to be answered after ``promised_s``, and had to be after ``budget_s``."""
        if lost:
            self.value = min(_MOST_OVERRUN, self.value + _OVERRUN_STEP)
        elif promised_s * (1.0 + self.value) > _CLOSE * budget_s:  # one that had plenty of time shows nothing
            self.value = max(0.0, self.value - _OVERRUN_STEP * _LOST / (1.0 - _LOST))


@dataclass(frozen=True, slots=True)
class Curve:
    """What each batch size takes: ``seconds[n]`` for n frames, ``seconds[0]`` is 0."""

    seconds: tuple[float, ...]
    spread: float
    """How far measurements lie from the estimate on the average, as a share of it."""
    at_rest: float = 0.0
    """What one frame takes on a machine that does nothing else, if that is known."""
    best: int = field(init=False)
    """The size to work off many frames with."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "best", self.choose(len(self.seconds) - 1))

    @property
    def alone(self) -> float:
        """What one frame takes if it comes next and all goes well; no frame that could make it is called hopeless."""
        return min(self.at_rest or inf, self.seconds[1])

    @property
    def margin(self) -> float:
        """By which share things may take longer than expected, to be on the safe side."""
        return min(_MOST_MARGIN, _MARGIN * self.spread)

    def within(self, limit_s: float) -> Curve:
        """Without the sizes that take longer; one frame alone is always possible."""
        if limit_s == inf:
            return self
        most = max((size for size in range(2, len(self.seconds)) if self.seconds[size] <= limit_s), default=1)
        return self if most == len(self.seconds) - 1 else Curve(self.seconds[: most + 1], self.spread, self.at_rest)

    def choose(self, most: int) -> int:
        """The batch size <= ``most`` with the least time a frame; of equals the smallest. ``most`` if none is known."""
        if not self.seconds[1]:
            return most
        each = [(self.seconds[size] + _BATCH_S) / size for size in range(1, most + 1)]
        limit = min(each) * (1.0 + _WORTH_IT)
        return next(size for size, share in enumerate(each, 1) if share <= limit)

    def drag(self, size: int, waiting: int) -> float:
        """How many times as long a frame takes in a batch of ``size`` as in the best one that could have been had."""
        best = self.choose(min(waiting, len(self.seconds) - 1))
        ideal = self.seconds[best] / best
        return max(1.0, self.seconds[size] / size / ideal) if ideal > 0 else 1.0

    def clear(self, frames: int) -> float:
        """Seconds to work off so many frames in the best batches, if no others join the last one."""
        full, rest = divmod(frames, self.best)
        return full * self.seconds[self.best] + self.seconds[rest]

    def clear_with_others(self, in_front: int) -> float:
        """Seconds until the frame behind so many others has had its inference, if others fill up its batch.

        The first one is never held up by those behind it: a batch is only as large as its deadlines allow.
        """
        return self.seconds[1] if not in_front else (in_front // self.best + 1) * self.seconds[self.best]


class CostModel:
    """Measured seconds of an inference for each batch size; sizes that were not run yet lie between those that were."""

    def __init__(self, max_batch: int, clock: Callable[[], float]) -> None:
        self._max_batch = max_batch
        self._clock = clock
        self._sizes: dict[int, Duration] = {}
        self._spread = Duration(clock)
        self._alone = Duration(clock)
        self._curve: tuple[float, Curve] | None = None

    @property
    def buckets(self) -> list[int]:
        """The sizes to measure at the start: powers of two, and the largest."""
        powers = [1 << index for index in range(self._max_batch.bit_length())]
        return sorted({*powers, self._max_batch})

    @property
    def age(self) -> float:
        """Seconds since anything was measured."""
        return min((duration.age for duration in self._sizes.values()), default=0.0)

    def observe_at_rest(self, seconds: float) -> None:
        """Take in an inference of one frame with nothing beside it; the curve is of a busy machine."""
        self._alone.observe(seconds)
        self._curve = None

    def observe(self, size: int, seconds: float) -> None:
        """Take in one inference of ``size`` frames."""
        if size not in self._sizes:
            self._sizes[size] = Duration(self._clock)
        elif (expected := self._sizes[size].value) > 0:
            self._spread.observe(abs(seconds / expected - 1.0))
        self._sizes[size].observe(seconds)
        if size == 1:
            self._alone.observe(seconds)
        self._curve = None

    def curve(self) -> Curve:
        """What is expected at this moment."""
        now = self._clock()
        if self._curve is None or abs(now - self._curve[0]) > _CURVE_S:
            known = sorted((size, duration.value) for size, duration in self._sizes.items())
            seconds = (0.0, *(_between(known, size) for size in range(1, self._max_batch + 1)))
            self._curve = now, Curve(seconds, self._spread.value, self._alone.value)
        return self._curve[1]


def _between(known: list[tuple[int, float]], size: int) -> float:
    """Linear between the two nearest sizes; beyond the largest in proportion to it, below the smallest as that one."""
    below = next(((n, value) for n, value in reversed(known) if n <= size), None)
    above = next(((n, value) for n, value in known if n >= size), None)
    if below is None:
        return above[1] if above is not None else 0.0
    if above is None:
        return below[1] * size / below[0]
    if above[0] == below[0]:
        return below[1]
    return below[1] + (above[1] - below[1]) * (size - below[0]) / (above[0] - below[0])
