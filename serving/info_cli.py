"""The command ``info``: what a bundle is, or what a server serves, and what either of them promises."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vision.bundle import Bundle, load_bundle
from vision.calibration.evidence import percent
from vision.console import exits_cleanly, plain
from vision.decision import OperatingPoint
from vision.drift.reference import bundle_reference
from vision.errors import SettingsError

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.option("--bundle", type=_FOLDER, help="Folder that `defectlens export` wrote.")
@click.option("--server", metavar="ADDR", help="HOST:PORT or unix:/PATH of a running server, instead of a folder.")
@click.option("--json", "as_json", is_flag=True, help="Everything as one JSON line.")
@exits_cleanly
def info(bundle: Path | None, server: str | None, as_json: bool) -> None:
    """Show what a bundle is and what it can do, and refuse a damaged one; or what a server serves, and how.

    \b
    Example:
      defectlens info --bundle bundles/parts
      defectlens info --server 127.0.0.1:50051
    """
    if (bundle is None) == (server is None):
        raise SettingsError("take either --bundle FOLDER or --server ADDR")
    facts = plain(_facts(load_bundle(bundle)) if bundle is not None else _served_facts(str(server)))
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
        return
    basis = facts["operating_point"].get("basis")
    if basis is not None:  # told in words below; --json has it in fields
        facts["operating_point"]["basis"] = {"rule": basis["rule"], "method": basis["method"], **basis["asked"]}
    _show(facts)


def _show(facts: dict[str, Any], indent: str = "") -> None:
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            click.echo(f"{indent}{key}:")
            _show(value, indent + "  ")
        else:
            click.echo(f"{indent}{key}: {_words(value)}")


def _words(value: Any) -> str:
    if value in ({}, [], "", None):
        return "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest, reference = bundle.manifest, bundle_reference(bundle)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created": manifest.created,
        "bundle_digest": bundle.digest,
        "model_digest": manifest.model_digest,
        "input": asdict(manifest.input),
        "classes": manifest.classes,
        "good_class": manifest.good_class,
        "anomaly_score": manifest.has_anomaly_score,
        "operating_point": asdict(manifest.operating_point),
        "promise": _promise(manifest.operating_point),
        "class_calibration": None if manifest.class_calibration is None else asdict(manifest.class_calibration),
        "precisions": bundle.precisions,
        "check_frames": bundle.has_check_frames,
        "drift_signals": [] if reference is None else [signal.name for signal in reference.signals],
        "calibration_images": len(manifest.calibration_scores),
        "explanations": None if manifest.explanations is None else asdict(manifest.explanations),
        "metrics": manifest.metrics,
        "parity": manifest.parity,
        "provenance": manifest.provenance,
        "files": {name: entry.bytes for name, entry in manifest.files.items()},
    }


def _promise(point: OperatingPoint) -> dict[str, Any] | None:
    """What was promised and on what grounds, in words; bundles of earlier versions have only the one text."""
    basis = point.basis
    if basis is None:
        return {"promise": point.evidence} if point.evidence else None
    measured = {
        name: f"{percent(rate.value)} ({rate.hits} of {rate.of}; {percent(rate.low)} to {percent(rate.high)})"
        for name, rate in basis.measured.items()
        if rate.of
    }
    return {
        "promise": basis.promise,
        "rests_on": basis.basis,
        "confidence": "on average" if basis.confidence is None else percent(basis.confidence),
        "method": basis.method,
        "holds_while": basis.assumption,
        "data": basis.data,
        "data_digest": basis.data_digest,
        "notes": list(basis.notes),
        "measured_on_them": measured,
    }


def _served_facts(address: str) -> dict[str, Any]:
    from serving.client import InspectionClient

    with InspectionClient(address) as client:
        served = client.get_model(timeout_s=10.0)
    facts = {**asdict(served), "promise": _promise(served.operating_point)}
    for name in ("metrics", "parity", "provenance"):
        facts[name] = json.loads(facts.pop(f"{name}_json"))
    return facts
