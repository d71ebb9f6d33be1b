"""The audit store: records a second, verification, and what recording costs the server.

    python -m benchmarks.audit --bundle bundles/parts
    python -m benchmarks.audit --rows records --store postgresql://USER@HOST/NAME

Rows: ``records`` (with group commit, alone and with the files of each answer), ``verify`` (of 100,000 records),
``server`` (throughput with and without recording, in turns). One table, then one JSON line. Questions to a million
records are in ``benchmarks.audit_history``, kills in ``benchmarks.audit_kills``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models
from benchmarks.audit_history import Clock, fill, made_up_answer
from benchmarks.measured import Measurements
from benchmarks.processes import load, ours, ready_by_file
from serving.audit import AuditPlace, Blob, Store
from serving.audit.append import head
from serving.audit.signing import Signer, make_checkpoint
from serving.audit.verify import verify

_GROUP = 64
# More than a server answers in one round.
_FRAMES = 400
_FRAME_BYTES, _MAPS_BYTES = 150_000, 9_000


def records(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float, str]]:
    """Answers that are made durable in groups of 64, as a busy server's recorder does."""
    for name, with_files, must in (("records alone", False, ">= 500"), ("with a frame and maps each", True, "")):
        with _store(options, folder / name) as store:
            draw, noise = random.Random(1), np.random.default_rng(1)  # noqa: S311, the same records every time
            number, start = 0, time.perf_counter()
            while time.perf_counter() - start < options.seconds:
                batch, blobs = [], []
                for _ in range(_GROUP):
                    number += 1
                    one = made_up_answer(number, draw)
                    if with_files:
                        files = [Blob.of(noise.bytes(size), "image/png") for size in (_FRAME_BYTES, _MAPS_BYTES)]
                        one, blobs = replace(one, frame=files[0].ref, maps=files[1].ref), [*blobs, *files]
                    batch.append(one)
                store.append(batch, blobs)
            yield f"{name}, a second", number / (time.perf_counter() - start), must
    with _store(options, folder / "single") as store:
        draw, number, start = random.Random(1), 0, time.perf_counter()  # noqa: S311
        while time.perf_counter() - start < options.seconds:
            number += 1
            store.append([made_up_answer(number, draw)])
        yield "one by one, without groups, a second", number / (time.perf_counter() - start), ""


def verification(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float, str]]:
    """Of 100,000 records with their search tables and a checkpoint every thousand."""
    with _store(options, folder / "verify") as store:
        signer = Signer.at(store.place.key)
        while (done := _last(store)) < options.records:
            fill(store, min(2000, options.records - done), reviews=False)
            make_checkpoint(store, signer, 0)
        start = time.perf_counter()
        found = verify(store, key=signer.public, files=False)
        took = time.perf_counter() - start
        if not found.intact or found.records < options.records:
            raise SystemExit(f"the store is not as it was made: {found.problems[:3]}")
        yield f"verify {found.records} records, s", took, "< 30"


def server(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float, str]]:
    """Frames a second of a server that records nothing, best-effort and strictly, in turns. Every frame is another
    file: the same one would be stored once.
    """
    measurements = Measurements(options, folder)
    jpegs = measurements.jpegs
    requests = [
        # What follows the end of a JPEG's image is not looked at.
        measurements.file(f"audit{index}", models.message(jpegs[index % len(jpegs)] + index.to_bytes(4, "little")))
        for index in range(_FRAMES)
    ]
    modes = {"off": [], "best-effort": ["--audit-mode", "best-effort"], "strict": ["--audit-mode", "strict"]}
    rates: dict[str, list[float]] = {mode: [] for mode in modes}
    for round_ in range(options.rounds):
        for mode, words in modes.items():
            place = folder / f"{mode}{round_}"
            audit = [] if mode == "off" else ["--audit", str(place), *words]
            command = ours(measurements.bundle.path, [*measurements.serve_options, *audit])
            with ready_by_file(command, folder / f"serve-{mode}{round_}") as (address, _):
                figures = load(address, requests, in_flight=16, seconds=options.seconds)
            rates[mode].append(figures["per_second"])
    yield "server without recording, frames a second", statistics.median(rates["off"]), ""
    for mode in ("best-effort", "strict"):
        shares = [one / other for one, other in zip(rates[mode], rates["off"], strict=True)]
        yield f"{mode} ÷ without recording", statistics.median(shares), ""


ROWS: dict[str, Callable[[argparse.Namespace, Path], Iterator[tuple[str, float, str]]]] = {
    "records": records,
    "verify": verification,
    "server": server,
}


def _store(options: argparse.Namespace, folder: Path) -> Store:
    if options.store:
        place = AuditPlace.of(options.store, files=folder / "files")
        return Store.open(place, create=True)
    return Store.open(folder, create=True, clock_ns=Clock())


def _last(store: Store) -> int:
    with store.reading() as connection:
        return head(connection, store.store_id).seq


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="records,verify,server")
    parser.add_argument("--bundle", type=Path, help="for the row `server`; default: an untrained one")
    parser.add_argument("--store", help="URL of an empty PostgreSQL database; default: SQLite in a temporary folder")
    parser.add_argument("--folder", type=Path, help="where stores are made; default: the temporary folder")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--frame", default="1280x1024")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--serve-options", default="")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for row in options.rows.split(","):
            for name, value, must in ROWS[row](options, Path(folder)):
                figures[name] = value
                print(f"{name:48} {value:10.2f}  {must}", flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
