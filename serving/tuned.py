"""The small file that ``defectlens tune`` writes and ``serve --tuned`` uses: good for one model on one machine."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vision.engine import Precision, Provider, check_choice
from vision.errors import DefectLensError, SettingsError

_FORMAT, _FORMAT_VERSION = "defectlens-tuned", 1
# What the speed of an engine depends on; another version of them may be faster or slower.
_PACKAGES = ("onnxruntime-gpu", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings that were best on ``machine`` for the model with ``model_digest`` (SHA-256 of ``model.onnx``)."""

    machine: dict[str, Any]
    model_digest: str
    provider: Provider
    precision: Precision
    threads: int
    max_batch: int

    def settings(self) -> dict[str, Any]:
        """Of ``ServerSettings``."""
        return {
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.threads,
            "max_batch": self.max_batch,
        }

    def check(self, path: Path, model_digest: str) -> None:
        """Raise SettingsError unless the file was made for this model on this machine."""
        again = "measure again with `defectlens tune`"
        if self.model_digest != model_digest:
            raise SettingsError(
                f"{path} was made for another model (digest {self.model_digest[:12]}) than the bundle's (digest "
                f"{model_digest[:12]}); {again}"
            )
        here = fingerprint()
        differs = [
            f"{key} was {self.machine.get(key)!r} and is {here.get(key)!r}"
            for key in sorted({*here, *self.machine})
            if self.machine.get(key) != here.get(key)
        ]
        if differs:
            raise SettingsError(f"{path} was made on another machine: {'; '.join(differs)}; {again}")


def fingerprint() -> dict[str, Any]:
    """What the speed of an engine on this machine depends on."""
    machine: dict[str, Any] = {"cpu": _cpu_model(), "cores": usable_cores(), "gpus": _gpus()}
    for package in _PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            continue
    return machine


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_tuned(path: Path, tuned: Tuned, measured: list[dict[str, Any]]) -> None:
    """``measured``: the table behind the choice, for people."""
    document = {"format": _FORMAT, "format_version": _FORMAT_VERSION, **asdict(tuned), "measured": measured}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_tuned(path: Path) -> Tuned:
    """The inverse of ``write_tuned``.

    Raises:
        SettingsError: no such file, or another one.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        known = (document.pop("format"), document.pop("format_version"))
        if known != (_FORMAT, _FORMAT_VERSION):
            raise SettingsError(f"its format is {known[0]!r} version {known[1]!r}")
        document.pop("measured", None)
        tuned = Tuned(**document)
        check_choice(tuned.provider, tuned.precision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, DefectLensError) as error:
        raise SettingsError(f"{path} is no file that `defectlens tune` wrote: {error}; make one with it") from error
    return tuned


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown"
    wanted = ("model name", "cpu family", "model", "stepping")  # virtual machines often hide the name
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return " ".join(facts[key] for key in wanted if key in facts) or "unknown"


def _gpus() -> list[str]:
    """Names as the NVIDIA driver gives them."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        facts = dict(line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
        names.append(facts.get("Model", "unknown").strip())
    return names
