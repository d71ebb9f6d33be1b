"""Defectlens beside anomalib's models: the same images, backbone weights, input size and metrics code, in one run.

    python -m benchmarks.accuracy --data DIR --out OUT --peers-python ENV/bin/python

Everyone learns from the good training images alone and is asked about the whole test part, which nothing is chosen by.
anomalib lives in an environment of its own, so that its dependencies and ours never mix:

    python -m venv ENV && ENV/bin/pip install 'defectlens[peers]'

Each peer is fitted there in a process of its own and leaves its scores and maps in OUT, where this process measures
them. What OUT already holds is not run again; ``--again`` says what is. Latencies are measured anew each time, in
turns, every model as an ONNX graph in ONNX Runtime. OUT/accuracy.json has the table with intervals and settings.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from pathlib import Path

from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.comparison import Comparison
from benchmarks.peers.measured import markdown, rows, verdict
from vision.console import plain
from vision.errors import DefectLensError, SettingsError
from vision.model.backbone import DEFAULT_BACKBONE

HOW_TO_INSTALL = "python -m venv ENV && ENV/bin/pip install 'defectlens[peers]'"


def find_anomalib(python: Path | None) -> str:
    """The version of anomalib in the peers' environment.

    Raises:
        SettingsError: there is none.
    """
    if python is None:
        raise SettingsError(
            f"the peers need an environment with anomalib; make one with `{HOW_TO_INSTALL}` and give "
            "--peers-python ENV/bin/python, or --peers '' for defectlens alone"
        )
    question = "from importlib.metadata import version; print(version('anomalib'))"
    try:
        answer = subprocess.run([python, "-I", "-c", question], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(f"{python} has no anomalib; make its environment with `{HOW_TO_INSTALL}`") from error
    return answer.stdout.strip()


def _epochs(text: str) -> dict[str, int]:
    pairs = [word.partition("=") for word in text.split(",") if word]
    return {name: int(value) for name, _, value in pairs}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog=f"The peers' environment: {HOW_TO_INSTALL}",
    )
    parser.add_argument("--data", required=True, help="folder in the MVTec layout, or elpv")
    parser.add_argument("--out", required=True, type=Path, help="results; what is there is not run again")
    parser.add_argument("--peers-python", type=Path, help="interpreter of the environment with anomalib")
    names = ",".join(PEERS)
    parser.add_argument("--peers", default=names, help=f"which of {names}; '' for none")
    parser.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        help="a finished run or bundle of defectlens; without it, one is trained; again for other seeds",
    )
    parser.add_argument("--size", type=int, default=256, help="of everybody's input, as in `defectlens train`")
    parser.add_argument("--backbone", default=DEFAULT_BACKBONE)
    parser.add_argument("--weights", type=Path, help="backbone weights, .safetensors with timm's names")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2: everything is fitted once a seed")
    parser.add_argument("--epochs", default="", help="such as stfpm=100,supersimplenet=300")
    parser.add_argument("--again", default="", help=f"which of {names},{OURS} to run again")
    parser.add_argument("--batch", type=int, default=32, help="of the peers' training; anomalib's default")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5, help="of 20 frames, of the latency; 0 for none")
    return parser


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    options.peers = [name for name in options.peers.split(",") if name]
    options.seeds = [int(word) for word in options.seeds.split(",")]
    options.epochs = _epochs(options.epochs)
    options.peers_python = None if options.peers_python is None else options.peers_python.absolute()
    options.again = [name for name in options.again.split(",") if name]
    if unknown := sorted({*options.peers, *options.epochs, *options.again} - PEERS.keys() - {OURS}):
        parser.error(f"unknown peers {', '.join(unknown)}; known are {', '.join(PEERS)}")
    try:
        version = find_anomalib(options.peers_python) if options.peers else None
        comparison = Comparison(options)
        results = comparison.peer_results() + comparison.our_results()
        if options.rounds:
            comparison.add_latencies(results)
    except DefectLensError as error:
        parser.error(str(error))
    table = rows(results)
    print(markdown(table))
    for line in [*(note for row in table for note in row["notes"]), *verdict(table)]:
        print(line)
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "load": os.getloadavg()}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    document = {"anomalib": version, "table": table, "results": results, "options": settings, **machine}
    (options.out / "accuracy.json").write_text(json.dumps(plain(document), indent=2, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
