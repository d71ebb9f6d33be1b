"""``defectlens tune``: which engine, precision, threads and batch size are best on this very machine."""

from __future__ import annotations

import importlib.util
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.table import Table

from serving.tuned import Tuned, fingerprint, usable_cores, write_tuned
from vision.bundle import Bundle, load_bundle
from vision.console import console, exits_cleanly, finish, json_option, say, track
from vision.engine import PRECISIONS, Engine, EngineOptions, Precision, Provider, needs_file
from vision.errors import ParityError, ProviderError
from vision.measuring import one_round

_BATCHES = (1, 2, 4, 8)
# Where candidates are this close, what is simpler wins: other load on the machine moves figures by as much.
_TIE = 0.05
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 40


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is tried; ordered from plain to special within one provider."""

    provider: Provider
    precision: Precision
    threads: int

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        return f"{self.provider} {self.precision}{threads}"


@dataclass(frozen=True, slots=True)
class Result:
    """What a candidate did: typical ms a frame by batch size, or why it may not serve."""

    candidate: Candidate
    gate: str
    ms: dict[int, float]

    @property
    def batch(self) -> int:
        """The smallest batch whose throughput is within the tie of the best one's."""
        limit = min(self.ms.values()) * (1 + _TIE)
        return min(size for size, time_ms in self.ms.items() if time_ms <= limit)

    @property
    def throughput(self) -> float:
        """Frames a second at ``batch``."""
        return 1000.0 / self.ms[self.batch]


def candidates(bundle: Bundle, cores: int, *, tensorrt: bool = False) -> list[Candidate]:
    """Everything that is installed and that the bundle has a model for, plain ones first.

    Args:
        tensorrt: try it too; building its engines takes minutes.
    """
    threads = sorted({1, max(1, cores // 2), cores})
    providers: list[Provider] = ["cpu"]
    if importlib.util.find_spec("openvino") is not None:
        providers.append("openvino")
    if Path("/dev/nvidiactl").exists():
        providers.append("cuda")
    if tensorrt:
        providers.append("tensorrt")
    return [
        Candidate(provider, precision, count)
        for provider in providers
        for precision in PRECISIONS[provider]
        if (precision in bundle.precisions or not needs_file(provider, precision))
        and (precision == "fp32" or bundle.has_check_frames)
        for count in ((0,) if provider in ("cuda", "tensorrt") else threads)
    ]


def measure(bundle: Bundle, tried: list[Candidate], seconds: float) -> list[Result]:
    """Gate and measure every candidate, for about ``seconds`` in all, in turns."""
    started = time.monotonic()
    engines: dict[Candidate, Engine] = {}
    gates: dict[tuple[Provider, Precision], str] = {}
    for candidate in track(tried, "Checking parity", unit="engines"):
        kind = (candidate.provider, candidate.precision)
        if gates.get(kind):
            continue
        try:
            options = EngineOptions(threads=candidate.threads, max_batch=max(_BATCHES))
            engine = bundle.engine(
                provider=candidate.provider, precision=candidate.precision, strict=True, options=options
            )
            if kind not in gates:  # the number of threads changes no kernel, and `serve` asks again anyway
                bundle.replay_golden(engine)
        except (ProviderError, ParityError) as error:
            gates[kind] = str(error)
        else:
            engines[candidate], gates[kind] = engine, ""
    frames, _ = bundle.golden()
    sizes = [size for size in _BATCHES if size <= bundle.manifest.input.most_frames(size)]
    cases = {(candidate, size): (engine, size) for candidate, engine in engines.items() for size in sizes}
    one_round(cases, frames)  # the first runs allocate
    samples: dict[tuple[Candidate, int], list[float]] = defaultdict(list)
    for number in track(range(_MOST_ROUNDS), "Measuring", unit="rounds"):
        for key, value in one_round(cases, frames).items():
            samples[key].append(value)
        if number + 1 >= _LEAST_ROUNDS and time.monotonic() - started >= seconds:
            break
    base = next(iter(samples.values()), [])
    return [
        Result(
            candidate,
            gates[candidate.provider, candidate.precision],
            {size: _typical(samples[candidate, size], base) for size in sizes} if candidate in engines else {},
        )
        for candidate in tried
    ]


def _typical(times: list[float], base: list[float]) -> float:
    """Median of ``times`` (ms, one a round) in units of the base of the same round: a slow round changes little."""
    return float(np.median(np.array(times) / base) * np.median(base))


def choose(results: list[Result]) -> tuple[Result, str]:
    """The best one that passed its gate, and why, in words.

    Most frames a second; among those within 5 % of it the plainest: what comes first in ``results``, which means ONNX
    Runtime before others, fp32 before fewer bits, and few threads before many.

    Raises:
        ParityError: none passed.
    """
    passed = [result for result in results if not result.gate]
    if not passed:
        raise ParityError("no engine passed the parity gate: " + "; ".join(result.gate for result in results))
    fastest = max(passed, key=lambda result: result.throughput)
    chosen = next(result for result in passed if result.throughput * (1 + _TIE) >= fastest.throughput)
    plain = passed[0]
    why = f"{chosen.candidate}: {chosen.throughput:.1f} frames/s in batches of {chosen.batch}"
    if chosen is not plain:
        why += f", {chosen.throughput / plain.throughput:.2f} times {plain.candidate}"
    if chosen is not fastest:
        why += f"; {fastest.candidate} is no more than {_TIE:.0%} faster and less plain"
    return chosen, why


@click.command()
@click.option("--bundle", "folder", type=click.Path(path_type=Path, file_okay=False), required=True, help="The bundle.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for `serve --tuned`. Default: BUNDLE.tuned.json beside the bundle.",
)
@click.option("--seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Time to spend, about.")
@click.option("--tensorrt", is_flag=True, help="Try TensorRT too; building its engines takes minutes.")
@json_option
@exits_cleanly
def tune(folder: Path, out: Path | None, seconds: float, tensorrt: bool, as_json: bool) -> None:
    """Measure engines, precisions, threads and batch sizes on this very machine; write the best settings.

    What is installed is tried with the bundle's own frames, in turns. An engine that fails the parity gate is not
    measured. Let nothing else run meanwhile: other load makes every figure worse, and not all of them alike.

    \b
    Example:
      defectlens tune --bundle bundles/parts
      defectlens serve --bundle bundles/parts --tuned bundles/parts.tuned.json
    """
    bundle = load_bundle(folder)
    place = folder.resolve()
    out = out or place.with_name(place.name + ".tuned.json")
    if not bundle.has_check_frames:
        say("the bundle has no check frames (an earlier version made it): only fp32 is tried")
    results = measure(bundle, candidates(bundle, usable_cores(), tensorrt=tensorrt), seconds)
    chosen, why = choose(results)
    console.print(_table(results, chosen))
    refused = {(one.candidate.provider, one.candidate.precision): one.gate for one in results if one.gate}
    for (provider, precision), gate in refused.items():
        say(f"{provider} {precision} is refused: {gate}")
    if (load := os.getloadavg()[0]) > usable_cores() + 1:
        say(f"warning: the machine was busy with other things too (load {load:.1f} on {usable_cores()} cores)")
    say(f"chosen: {why}")
    candidate = chosen.candidate
    settings = Tuned(
        fingerprint(),
        bundle.manifest.model_digest,
        candidate.provider,
        candidate.precision,
        candidate.threads,
        chosen.batch,
    )
    rows = [_row(result) for result in results]
    write_tuned(out, settings, rows)
    say(f"written to {out}; next: defectlens serve --bundle {folder} --tuned {out}")
    finish(
        {"tuned": out, **settings.settings(), "why": why, **({"measured": rows} if as_json else {})}, as_json=as_json
    )


def _row(result: Result) -> dict[str, Any]:
    candidate = result.candidate
    return {
        "provider": candidate.provider,
        "precision": candidate.precision,
        "threads": candidate.threads,
        "parity": result.gate or "passed",
        "ms_a_frame": {str(size): value for size, value in result.ms.items()},
    }


def _table(results: list[Result], chosen: Result) -> Table:
    table = Table(title="frames a second by batch size")
    for name in ("engine", "threads", *map(str, _BATCHES), "ms, batch 1", "parity"):
        table.add_column(name, justify="left" if name in ("engine", "parity") else "right")
    for result in results:
        candidate = result.candidate
        rates = [f"{1000.0 / result.ms[size]:.1f}" if size in result.ms else "" for size in _BATCHES]
        latency = f"{result.ms[1]:.1f}" if result.ms else ""
        gate = "refused" if result.gate else "passed"
        engine = f"{candidate.provider} {candidate.precision}"
        row = (engine, str(candidate.threads or "auto"), *rates, latency, gate)
        table.add_row(*row, style="bold" if result is chosen else "")
    return table
