"""Makes the pictures of docs/explanations.md: plates are drawn, a model learns their scratches and dents.

    python docs/explanations_pictures.py

The plates are computed, so that the pictures may be shared; everything after them is the product itself. Takes some ten
minutes on two CPU cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from picture import HEIGHT, WIDTH, plate

from training.data import read_data
from training.explain.heads import contact_sheet, head_maps
from training.explain.measure import measure_one
from training.explain.report import strip
from training.explain.subjects import choose_subjects
from training.run import load_run
from vision.bundle import load_bundle
from vision.overlay import render_overlay
from vision.postprocess import judge
from vision.preprocess import decode_image, to_model_input

GOOD, EACH, TEST = 60, 30, 12
"""Images of training: good ones, and of each kind of defect; and of each kind in the test part."""


def damaged(rng: np.random.Generator, kind: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A plate with a scratch or a dent, and the mask of it, both uint8 ``[HEIGHT, WIDTH]``."""
    shade = np.zeros((HEIGHT, WIDTH), np.float32)
    x, y = rng.uniform(110, WIDTH - 110), rng.uniform(40, HEIGHT - 40)
    if kind == "scratch":
        angle = rng.uniform(0, np.pi)
        points = [(x, y)]
        for _ in range(int(rng.integers(3, 7))):
            angle += rng.normal(0, 0.35)
            points.append((points[-1][0] + 22 * np.cos(angle), points[-1][1] + 22 * np.sin(angle)))
        cv2.polylines(shade, [np.array(points).round().astype(np.int32)], False, 1.0, 2, cv2.LINE_AA)
    else:
        axes = (int(rng.integers(6, 14)), int(rng.integers(5, 11)))
        cv2.ellipse(shade, (int(x), int(y)), axes, float(rng.uniform(0, 180)), 0, 360, 0.8, -1, cv2.LINE_AA)
    soft = cv2.GaussianBlur(shade, (0, 0), 1.0)
    pixels = np.clip(plate(rng).astype(np.float32) - rng.uniform(40, 80) * soft, 0, 255).astype(np.uint8)
    return pixels, ((soft > 0.25) * 255).astype(np.uint8)


def write_plates(root: Path, rng: np.random.Generator) -> None:
    """Plates in the MVTec layout, with masks of every defect."""
    for side, goods, each in (("train", GOOD, EACH), ("test", TEST, TEST)):
        for kind, count in (("good", goods), ("scratch", each), ("dent", each)):
            (root / side / kind).mkdir(parents=True)
            (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                name = f"{side}{index:03d}"
                if kind == "good":
                    cv2.imwrite(str(root / side / kind / f"{name}.png"), plate(rng))
                    continue
                pixels, mask = damaged(rng, kind)
                cv2.imwrite(str(root / side / kind / f"{name}.png"), pixels)
                cv2.imwrite(str(root / "ground_truth" / kind / f"{name}_mask.png"), mask)


def run(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "defectlens", *map(str, words)], check=True)


def save(path: Path, picture: NDArray[np.uint8]) -> None:
    """As a JPEG of RGB pixels."""
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])


def main() -> None:
    target = Path(__file__).parent / "explanations"
    target.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plates, trained, bundle_folder = folder / "plates", folder / "run", folder / "plate"
        write_plates(plates, np.random.default_rng(0))
        run("train", "--data", plates, "--out", trained, "--size", 224, "--epochs", 12)
        run("export", "--run", trained, "--out", folder / "unmeasured", "--name", "plate")
        report = folder / "why"
        words = ["--run", trained, "--data", plates, "--out", report, "--images", 0, "--write", bundle_folder]
        run("explain", "--bundle", folder / "unmeasured", *words)
        found = json.loads((report / "explain.json").read_text())
        print(json.dumps({key: found[key] for key in ("times_random", "promises", "checks")}, indent=1))  # noqa: T201
        draw(bundle_folder, trained, plates, target)


def draw(bundle_folder: Path, trained: Path, plates: Path, target: Path) -> None:
    """The four pictures."""
    bundle, detector, data = load_bundle(bundle_folder), load_run(trained).detector, read_data(plates)
    engine = bundle.engine(provider="cpu")
    frame = decode_image((plates / "test/scratch/test001.png").read_bytes())
    judged = judge(engine.run(to_model_input(frame, bundle.manifest.input)[None]), bundle.manifest, HEIGHT, WIDTH)
    save(target / "anomaly.jpg", render_overlay(frame, judged, bundle.manifest))
    save(target / "evidence.jpg", render_overlay(frame, judged, bundle.manifest, class_name="scratch"))
    subjects = choose_subjects(bundle, data, data.test, 6).chosen
    measured = [measure_one(subject, engine, detector, seed=0) for subject in subjects[:2]]
    save(target / "methods.jpg", strip(measured))
    rows = [(subject, head_maps(detector, subject)["block 2"]) for subject in subjects[:4]]
    save(target / "heads.jpg", contact_sheet("block 2", rows, None))


if __name__ == "__main__":
    main()
