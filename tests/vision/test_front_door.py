from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import defectlens

COMMANDS = (
    *("train", "evaluate", "export", "calibrate", "serve", "inspect", "models", "top", "info", "whatif", "escapes"),
    *("tune", "demo", "doctor", "masters", "override", "forget", "reference", "explain"),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "defectlens", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


class _Absent:
    """An import finder for which the training stack is not installed."""

    names = frozenset({"torch", "torchvision", "timm", "albumentations", "elpv_dataset", "accelerate", "jinja2"})

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.fixture
def serving_installation(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(sys.modules):
        if name.partition(".")[0] in {*_Absent.names, "training"} or name.startswith("vision.model"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, package=None: None if name.partition(".")[0] in _Absent.names else find_spec(name, package),
    )
    yield
    for name in list(sys.modules):  # half-imported modules must not stay for the next test
        if name.partition(".")[0] == "training" or name.startswith("vision.model"):
            del sys.modules[name]


def test_the_overview_lists_every_command() -> None:
    result = CliRunner().invoke(defectlens.main, ["--help"])
    assert result.exit_code == 0
    assert "Example:" in result.output
    for name in COMMANDS:
        assert f"\n  {name} " in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    result = CliRunner().invoke(defectlens.main, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert "Example" in result.output
    assert f"defectlens {command}" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command: str) -> None:
    found = defectlens.main.get_command(click.Context(defectlens.main), command)
    assert found is not None
    missing = [option.name for option in found.params if isinstance(option, click.Option) and not option.help]
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_is_exit_code_2(command: str) -> None:
    assert CliRunner().invoke(defectlens.main, [command, "--no-such-option"]).exit_code == 2


def test_an_unknown_command_is_exit_code_2() -> None:
    done = run("fly")
    assert done.returncode == 2
    assert "No such command 'fly'" in done.stderr


def test_a_missing_bundle_is_exit_code_2_and_one_message(tmp_path: Path) -> None:
    done = run("info", "--bundle", str(tmp_path))
    assert done.returncode == 2
    assert "bundle.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_success_is_exit_code_0() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("defectlens")


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "explain"])
@pytest.mark.usefixtures("serving_installation")
def test_the_serving_installation_says_what_is_missing(command: str, tmp_path: Path) -> None:
    """At the latest when the command runs: its help may still be shown."""
    arguments = {
        "train": ["--data", str(tmp_path), "--out", str(tmp_path / "run")],
        "evaluate": ["--bundle", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out")],
        "export": ["--run", str(tmp_path), "--out", str(tmp_path / "bundle")],
        "explain": ["--bundle", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out")],
    }[command]
    result = CliRunner().invoke(defectlens.main, [command, *arguments])
    assert result.exit_code == 2, result.output
    assert f"`defectlens {command}` needs the package" in result.output
    assert "pip install 'defectlens[train]'" in result.output


@pytest.mark.usefixtures("serving_installation")
def test_the_serving_installation_has_no_demo() -> None:
    result = CliRunner().invoke(defectlens.main, ["demo"])
    assert result.exit_code == 2, result.output
    assert "pip install 'defectlens[demo]'" in result.output
