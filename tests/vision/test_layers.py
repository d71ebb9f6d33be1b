"""``vision`` <- ``vision.model`` <- ``training`` and ``vision`` <- ``serving``; nothing crosses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAINING_STACK = ("torch", "torchvision", "timm", "albumentations", "matplotlib", "training", "vision.model")


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines())


def test_import_rule() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "import serving",
        "import serving.cli, serving.tune",
        "import serving.server",
        "import serving.recording, serving.audit.cli",
        "import vision.overlay, vision.engine_openvino, vision.engine_cuda",
    ],
)
def test_serving_leaves_the_training_stack_alone(statement: str) -> None:
    modules = loaded_after(statement)
    assert modules.isdisjoint(TRAINING_STACK), sorted(modules.intersection(TRAINING_STACK))


def test_a_runtime_is_loaded_when_an_engine_is_opened_and_not_before() -> None:
    modules = loaded_after("import serving.cli, serving.server, serving.tune, vision.bundle, vision.engine_cuda")
    assert modules.isdisjoint({"onnxruntime", "openvino"})


def test_what_records_is_loaded_by_who_records_and_not_before() -> None:
    modules = loaded_after("import serving.cli, serving.server, serving.decisions_cli, serving.admin_client")
    assert modules.isdisjoint({"sqlalchemy", "alembic", "cryptography", "pyarrow", "serving.audit"})


def test_help_costs_neither_torch_nor_onnxruntime() -> None:
    modules = loaded_after("import defectlens")
    assert modules.isdisjoint({*TRAINING_STACK, "onnxruntime", "grpc", "cv2", "numpy"})


@pytest.mark.slow
def test_training_leaves_serving_alone() -> None:
    modules = loaded_after("import training.cli, training.demo")
    assert not [name for name in modules if name.partition(".")[0] == "serving"]
    assert "onnxruntime" not in modules
