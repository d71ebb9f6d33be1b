"""Frames a second of every engine, precision and batch size, as ratios to ONNX Runtime's fp32 on the CPU.

    python -m benchmarks.engines BUNDLE [--threads 1] [--rounds 30]

All engines run in turns on the bundle's golden frames, so that other load on the machine hits all of them alike; a
figure is the median of the rounds, a ratio the median of the ratios within a round. Engines that the parity gate
refuses are measured all the same and marked. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

from serving.tune import Candidate, candidates
from serving.tuned import fingerprint, usable_cores
from vision.bundle import load_bundle
from vision.engine import Engine, EngineOptions
from vision.errors import ParityError, ProviderError
from vision.measuring import one_round

BATCHES = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    engines: dict[Candidate, Engine] = {}
    gates: dict[Candidate, str] = {}
    for kind in dict.fromkeys((one.provider, one.precision) for one in candidates(bundle, usable_cores())):
        candidate = Candidate(*kind, given.threads)
        options = EngineOptions(threads=given.threads, max_batch=max(BATCHES))
        try:
            engine = bundle.engine(provider=kind[0], precision=kind[1], strict=True, options=options)
        except ProviderError as error:
            print(f"{candidate}: {error}")
            continue
        engines[candidate] = engine
        try:
            bundle.replay_golden(engine)
            gates[candidate] = "passed"
        except ParityError as error:
            gates[candidate] = f"refused: {error}"
    cases = {(one, size): (engine, size) for one, engine in engines.items() for size in BATCHES}
    frames, _ = bundle.golden()
    one_round(cases, frames)
    rounds = [one_round(cases, frames) for _ in range(given.rounds)]
    base = next(iter(engines))
    print(f"{'frames/s (ratio to ' + str(base) + ')':44}" + "".join(f"{f'batch {size}':>16}" for size in BATCHES))
    report: dict[str, object] = {"machine": fingerprint(), "load": os.getloadavg()[0], "rounds": given.rounds}
    for candidate in engines:
        row = {}
        for size in BATCHES:
            rate = 1000.0 / float(np.median([times[candidate, size] for times in rounds]))
            ratio = float(np.median([times[base, size] / times[candidate, size] for times in rounds]))
            row[str(size)] = {"frames_per_second": rate, "ratio": ratio}
        cells = "".join(f"{one['frames_per_second']:8.1f} ({one['ratio']:.2f})" for one in row.values())
        print(f"{str(candidate) + ', ' + gates[candidate].partition(':')[0]:44}  {cells}")
        report[str(candidate)] = {"batches": row, "gate": gates[candidate]}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
