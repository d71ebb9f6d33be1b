"""The Dockerfile, checked without Docker: what it copies exists, and its installation steps work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """``(instruction, arguments)`` in order, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments(instruction: str) -> list[str]:
    return [rest for word, rest in instructions() if word == instruction]


def install_steps() -> list[str]:
    (step,) = [rest for rest in arguments("RUN") if "uv pip install" in rest]
    return [part.strip() for part in step.split("&&")]


def test_every_copied_file_exists_and_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = [source for rest in arguments("COPY") for source in shlex.split(rest)[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in let_through, source
    assert let_through == set(sources)


def test_the_base_image_has_cuda_13_and_cudnn() -> None:
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:13\.\d+\.\d+-cudnn-runtime-ubuntu\d\d\.\d\d", base)


def test_it_does_not_run_as_root() -> None:
    words = [word for word, _ in instructions()]
    (user,) = arguments("USER")
    assert user not in {"root", "0"}
    assert any("useradd" in rest and user in rest for rest in arguments("RUN"))
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert max(index for index, word in enumerate(words) if word == "RUN") < words.index("USER")


def test_only_the_base_package_is_installed() -> None:
    install = install_steps()[-1]
    assert install.endswith(" .")
    assert "[" not in install
    assert "--constraint requirements.lock" in install


def test_the_health_check_asks_the_server() -> None:
    (check,) = arguments("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    compile(command[2], "HEALTHCHECK", "exec")
    (port,) = arguments("EXPOSE")
    assert f"127.0.0.1:{port}" in command[2]
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False, cwd=ROOT, timeout=60)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr


def test_it_installs_the_system_packages_that_ci_installs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    (packages,) = re.findall(r"--no-install-recommends ([\w. -]+?) &&", " ".join(arguments("RUN")) + " &&")
    for package in packages.split():
        assert package in ci


@pytest.mark.slow
def test_the_installation_steps_work_and_serve_without_torch(tmp_path: Path) -> None:
    """The image's RUN steps in an empty folder, with exactly the files that the image copies."""
    for rest in arguments("COPY"):
        *sources, target = shlex.split(rest)
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    clean = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    for step in install_steps():
        # The cache may be used here: the packages are the same, and the network is spared.
        command = step.replace("--no-cache-dir ", "").replace("--no-cache ", "")
        subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=clean, timeout=900)  # noqa: S602
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    python = tmp_path / ".venv" / "bin" / "python"

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=elsewhere, env=clean)

    for arguments_ in (["--help"], ["serve", "--help"], ["inspect", "--help"], ["info", "--help"]):
        done = run(str(python.with_name("defectlens")), *arguments_)
        assert done.returncode == 0, done.stderr
    done = run(str(python.with_name("defectlens")), "train", "--data", ".", "--out", "run")
    assert done.returncode == 2
    assert "pip install 'defectlens[train]'" in done.stderr
    for name in ("torch", "timm", "albumentations"):
        assert run(str(python), "-c", f"import {name}").returncode != 0
    done = run(str(python), "-W", "error", "-c", "import serving.server, serving.cli, vision.overlay, onnxruntime")
    assert done.returncode == 0, done.stderr
