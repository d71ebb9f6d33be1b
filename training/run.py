"""One training run from data to a calibrated model: what `defectlens train` does, without the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from training import checkpoint
from training.calibrate import calibrate
from training.data import DataSet, Sample, frame_shapes
from training.drift import drift_reference
from training.loop import make_accelerator, parameters
from training.mixer_choice import choose_mixer
from training.options import PRESETS, TrainOptions, choose_recipe
from training.probes import Probes, choose_probes, in_turns
from training.resources import peak_mib
from training.rounds import Rounds
from training.splits import split
from training.stores import FrameStore
from training.subspace import fit_subspace
from training.tile_choice import plan_tiles, survey
from training.tiles import pieces
from vision.bundle import Manifest
from vision.console import plain, say
from vision.drift.reference import REFERENCE, Reference, read_reference, write_reference
from vision.errors import DataError, InputError, SettingsError
from vision.model.backbone import load_pretrained
from vision.model.config import ModelConfig
from vision.model.detector import Detector
from vision.preprocess import InputSpec
from vision.seen import Seen, read_seen, write_seen
from vision.types import Frame

RUN_FILE, MODEL_FILE, GOLDEN_FILE = "run.json", "model.safetensors", "golden.safetensors"
PROBES_FILE = "probes.safetensors"
_GOLDEN_FRAMES = 8
# Of large frames there are fewer, two at least, so that a bundle does not grow by more than this (before PNG).
_GOLDEN_BYTES = 24 * 2**20
# Of a strip of steel, say; beyond it, an input of the usual size would be a few cells high.
_LARGEST_ASPECT = 8.0
# Smaller frames are enlarged to this, larger ones come down to what the preset allows.
_USUAL_SIZE = 256


@dataclass(frozen=True)
class Run:
    """A finished run: the calibrated detector, what the bundle's manifest will say, and golden frames at input size,
    uint8 ``[N, H, W, 3]``. ``probes`` is None in runs of earlier versions: their bundles serve in fp32 alone.
    ``reference`` is None there too, and where good images are few: their bundles watch for no drift. ``seen``: what
    each image was used for, by digest of its content; None in runs of earlier versions.
    """

    detector: Detector
    manifest: Manifest
    golden: Frame
    figures: dict[str, Any]
    probes: Probes | None
    reference: Reference | None = None
    seen: Seen | None = None


def train_run(data: DataSet, options: TrainOptions, out: Path, *, resume: bool) -> Run:
    """Train, calibrate and write the run folder.

    Raises:
        InputError: the data or options do not allow it; the folder holds another run.
    """
    if not data.train:
        raise DataError(f"{data.root} has no training images; put good ones into train/good")
    started, used = time.monotonic(), time.process_time()
    parts = split(data, options.seed)
    surely_good = parts.surely_good(data.good_class)
    recipe = choose_recipe(data, parts, options)
    shapes = frame_shapes(parts.train, data.white_level)
    one = choose_input(shapes, options.size, data.white_level, PRESETS[options.preset].size)
    found = survey(parts.train, data.good_class, shapes)
    plan = plan_tiles(
        options.tile, one, found, few_labels=not recipe.tune_backbone, size_asked=options.size is not None
    )
    spec = plan.spec
    mixer, why_mixer = choose_mixer(options.mixer, plan.tile or (spec.height, spec.width))
    config = ModelConfig(
        backbone=options.backbone,
        height=spec.height,
        width=spec.width,
        classes=data.classes,
        good_class=data.good_class,
        reconstruction=recipe.reconstruction,
        class_map=recipe.class_map,
        mixer=mixer,
        heads=options.heads,
        guided_readout=data.good_class is not None or recipe.class_map,
        subspace=recipe.subspace,
        tile_height=plan.tile[0] if plan.tile else 0,
        tile_width=plan.tile[1] if plan.tile else 0,
    )
    identity = {
        "version": version("defectlens"),
        "data_digest": data.digest,
        "model": config.as_dict(),
        "recipe": asdict(recipe),
        "seed": options.seed,
    }
    _open_folder(out, identity, resume=resume)
    say(recipe.why)
    say(plan.why)
    if why_mixer:
        say(why_mixer)
    say(
        f"{len(parts.train)} images for training, {len(parts.validation)} for validation, {len(surely_good)} for "
        f"calibration; input {spec.width}x{spec.height} px"
    )
    accelerator = make_accelerator(options)
    torch.manual_seed(options.seed)
    detector = Detector(config)
    weights = load_pretrained(detector.backbone, Path(options.weights) if options.weights else None)
    say(f"backbone {options.backbone} ({parameters(detector) / 1e6:.1f} M parameters in all), weights: {weights}")
    stores = {
        name: FrameStore(samples, spec)
        for name, samples in (
            ("train", parts.train),
            ("validation", parts.validation),
            ("calibration", surely_good),
        )
    }
    rounds = Rounds(
        detector,
        recipe,
        options,
        stores,
        accelerator,
        cuts=plan.cuts,
        good_stand_for=parts.good_stand_for(data.good_class),
        run=out,
    )
    learned = rounds.learn(resume=resume)
    # Weights and thresholds come from frames that the subspace was not made of; then every good frame goes into it. New
    # good parts come closer to it by that, so the bound on overkill errs on the safe side (docs/decisions/0021).
    outcome = calibrate(detector, learned.fitted, stores["calibration"], stores["validation"])
    fit_subspace(detector, pieces(list(stores.values()), config), again=True)
    figures = {
        "best_epoch": learned.best_epoch,
        "epochs": learned.epochs,
        "validation": learned.validation,
        "training_seconds": learned.seconds,
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mib": peak_mib(),
        **outcome.figures,
    }
    if accelerator.device.type == "cuda":
        figures["peak_gpu_mib"] = torch.cuda.max_memory_allocated(accelerator.device) / 2**20
    manifest = Manifest(
        name=out.name,
        version="1",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        input=spec,
        classes=config.classes,
        good_class=config.good_class,
        predicts_by_anomaly_score=config.classes[1:] == ("anomaly",),
        operating_point=outcome.point,
        calibration_scores=outcome.scores,
        class_calibration=outcome.class_calibration,
        metrics={"validation": plain(figures)},
        provenance={
            "defectlens": version("defectlens"),
            "torch": version("torch"),
            "timm": version("timm"),
            "weights": weights,
            "data_digest": data.digest,
            "options": options.as_dict(),
            "recipe": recipe.why,
            "input": plan.why,
            "mixer": mixer,
            "counts": {name: len(store) for name, store in stores.items()},
        },
    )
    golden = _golden_frames(stores)
    sides = {"train": parts.train, "validation": parts.validation, "calibration": parts.calibration}
    seen = _seen({**sides, "test": data.test})
    probes = choose_probes(stores["train"], stores["validation"], config.good_class, options.seed, config.piece)
    reference = drift_reference(detector, stores, outcome.scores)
    if accelerator.is_main_process:
        checkpoint.save(out / MODEL_FILE, detector, None, {"model": config.as_dict()})
        save_file({"frames": golden}, out / GOLDEN_FILE)
        save_file(asdict(probes), out / PROBES_FILE)
        if reference is not None:
            write_reference(out, reference)
        write_seen(out, seen)
        document = {**identity, "manifest": asdict(manifest), "figures": figures}
        (out / RUN_FILE).write_text(json.dumps(plain(document), indent=2), encoding="utf-8")
    return Run(detector, manifest, golden, figures, probes, reference, seen)


def load_run(folder: Path) -> Run:
    """Read what ``train_run`` wrote.

    Raises:
        InputError: no run, or one that has not finished.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise InputError(f"{folder} is no training run: it has no {RUN_FILE}; make one with `defectlens train`")
    document = json.loads(path.read_text(encoding="utf-8"))
    if "manifest" not in document:
        raise InputError(f"the run in {folder} has not finished; go on with `defectlens train ... --resume`")
    manifest = Manifest.from_dict(document["manifest"])
    detector = Detector(ModelConfig.from_dict(document["model"]))
    checkpoint.load(folder / MODEL_FILE, detector)
    probes = Probes(**load_file(folder / PROBES_FILE)) if (folder / PROBES_FILE).is_file() else None
    reference = read_reference(folder) if (folder / REFERENCE).is_file() else None
    golden = load_file(folder / GOLDEN_FILE)["frames"]
    return Run(detector, manifest, golden, document["figures"], probes, reference, read_seen(folder))


def choose_input(
    shapes: Sequence[tuple[int, int]], size: int | None, white_level: int, largest: int = _USUAL_SIZE
) -> InputSpec:
    """Multiples of 32 with about ``size``² pixels and the median aspect ratio of the training frames (at most 8:1).

    Without a ``size`` as many pixels as the frames have, up to ``largest``² and not below 256² (or ``largest``²).
    """
    aspect = float(np.clip(np.median([shape[1] / shape[0] for shape in shapes]), 1 / _LARGEST_ASPECT, _LARGEST_ASPECT))
    if size is None:
        native = float(np.median([shape[0] * shape[1] for shape in shapes])) ** 0.5
        side = float(np.clip(native, min(_USUAL_SIZE, largest), largest))
    else:
        side = float(size)
    height, width = (max(64, 32 * round(one / 32)) for one in (side / aspect**0.5, side * aspect**0.5))
    return InputSpec(height, width, white_level)


def _open_folder(out: Path, identity: dict[str, Any], *, resume: bool) -> None:
    """Make the run's folder, or check that it holds the run that is to be resumed."""
    path = out / RUN_FILE
    known = plain(identity)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if not resume:
            raise SettingsError(f"{out} already holds a run; give another --out, or --resume to go on with it")
        differs = [key for key, value in known.items() if before.get(key) != value]
        if differs:
            raise SettingsError(f"{out} holds another run: {', '.join(differs)} differ; give another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2), encoding="utf-8")


def _golden_frames(stores: dict[str, FrameStore]) -> Frame:
    """Frames of as many labels as possible, from data that taught no first round where there are any."""
    store = max((stores[name] for name in ("validation", "train")), key=lambda entry: len(entry) >= _GOLDEN_FRAMES)
    turns = in_turns([sample.label for sample in store.samples])
    count = max(2, min(_GOLDEN_FRAMES, _GOLDEN_BYTES // store[0][0].nbytes))
    return np.stack([store[index][0] for index in turns[:count]])


def _seen(uses: Mapping[str, Sequence[Sample]]) -> Seen:
    return {use: frozenset(sample.content for sample in samples if sample.content) for use, samples in uses.items()}


def renamed(run: Run, name: str, bundle_version: str) -> Run:
    """The run under another bundle name and version."""
    return replace(run, manifest=replace(run.manifest, name=name, version=bundle_version))
