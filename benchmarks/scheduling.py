"""How the scheduler stands overload, on the virtual machine of its tests: ``python -m benchmarks.scheduling``.

Ten cameras send at random times, three times as many frames as the engine can do, for 20 s of virtual time. A line a
load: how many frames were let in, what share of those was not answered in time, and how many were, of those that the
engine could do in the best batches that their deadline allows.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.serving.virtual import linear, load, shared, simulate

SECONDS = 20.0
SEEDS = 3
Noise = Callable[[Random], float]


def uniform(random: Random) -> float:
    return random.uniform(0.9, 1.1)


def normal(random: Random) -> float:
    return max(0.5, random.gauss(1.0, 0.1))


def stalls(random: Random) -> float:
    """One inference in a hundred takes five times as long."""
    return 5.0 if random.random() < 0.01 else random.uniform(0.9, 1.1)


def report(name: str, cost: Callable[[int], float], within: float, sizes: int, noise: Noise) -> None:
    """Print one line; ``sizes`` is the largest batch that leaves time for the next one."""
    capacity = max(size / cost(size) for size in range(1, sizes + 1))
    admitted = in_time = 0
    for seed in range(SEEDS):
        random = Random(seed)  # noqa: S311
        came, _ = simulate(
            lambda rig, random=random: load(rig, SECONDS, 3 * capacity, within, random),
            lambda size, random=random: cost(size) * noise(random),
            max_batch=8,
            prepare_s=0.001,
            finish_s=0.001,
        )
        admitted += came["admitted"]
        in_time += came["in time"]
    missed = 100.0 * (admitted - in_time) / admitted
    print(f"{name:44} {admitted:6} {missed:7.2f} % {in_time:7} of {capacity * SECONDS * SEEDS:.0f}")


if __name__ == "__main__":
    print(f"{'load':44} {'let in':>6} {'missed':>9} {'in time':>7}")
    for label, noise in (("10 % of noise", uniform), ("normal noise", normal), ("stalls", stalls)):
        report(f"8 + 2n ms an inference, 60 ms, {label}", shared, 0.06, 8, noise)
        report(f"10n ms an inference, 60 ms, {label}", linear, 0.06, 1, noise)
