"""The front door: one command line over ``training`` and ``serving``, each loaded only when it is used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import click

# command: (module, attribute, one line for the overview, which must not cost an import of torch)
_COMMANDS = {
    "train": ("training.cli", "train", "Train a model on a folder of images."),
    "evaluate": ("training.cli", "evaluate", "Measure a bundle on labelled images; write a report."),
    "export": ("training.cli", "export", "Turn a training run into a verified ONNX bundle."),
    "explain": ("training.explain.cli", "explain", "Measure how good a bundle's explanations are; write a report."),
    "compare": ("training.compare.cli", "compare", "Train the same model with several token mixers and compare them."),
    "calibrate": ("training.calibrate_cli", "calibrate", "Choose a bundle's thresholds by what they must keep."),
    "serve": ("serving.cli", "serve", "Serve a bundle over gRPC."),
    "inspect": ("serving.cli", "inspect", "Send frames from a folder, video or camera to a server."),
    "doctor": ("serving.doctor", "doctor", "Say in words how a server and its cameras are."),
    "masters": ("serving.stations_cli", "masters", "Check a station with known-good and known-bad parts."),
    "override": ("serving.stations_cli", "override", "Let a station serve although its check failed."),
    "forget": ("serving.stations_cli", "forget", "Take a camera's next frames for usual."),
    "reference": ("serving.reference_cli", "reference", "Give a bundle what cameras are compared with."),
    "models": ("serving.models_cli", "models", "Load, try out, promote and roll back the models of a server."),
    "inspector": ("serving.inspector.cli", "inspector", "Serve the inspector's page."),
    "top": ("serving.top", "top", "Watch a running server in the terminal."),
    "info": ("serving.info_cli", "info", "Show what a bundle is and what it can do."),
    "whatif": ("serving.decisions_cli", "whatif", "Replay stored scores under other thresholds."),
    "escapes": ("serving.decisions_cli", "escapes", "Estimate escapes from passed parts that a person checked."),
    "audit": ("serving.audit.cli", "audit", "Prove, replay, export and prune what a server recorded."),
    "tune": ("serving.tune", "tune", "Find the fastest engine and settings for a bundle on this machine."),
    "demo": ("training.demo", "demo", "The whole river on real solar cells."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        # Torch's threads spin while they wait; where they share a core with another busy process, that makes both ten
        # times slower. Must be set before torch loads.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # NumPy's few small products gain nothing from more threads, and those spin on the cores that inference and
        # decoding need: a server answered 41 frames a second instead of 52. Must be set before NumPy loads.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in {"training", "serving", "vision", "protos"}:
                raise
            extra = "demo" if cmd_name == "demo" else "train"
            raise click.UsageError(
                f"`defectlens {cmd_name}` needs the package {error.name!r}, which the serving installation leaves out; "
                f"install it with `pip install 'defectlens[{extra}]'`"
            ) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


def _remote_predictor(address: str, bundle: Any) -> Any:
    """A running server as a predictor for `evaluate`: training and serving meet here and nowhere else."""
    return importlib.import_module("serving.remote").RemotePredictor(address, bundle)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="defectlens")
@click.pass_context
def main(context: click.Context) -> None:
    """Industrial visual inspection: train, export, serve and inspect.

    \b
    Example:
      defectlens train --data parts/ --out runs/parts
      defectlens export --run runs/parts --out bundles/parts
      defectlens serve --bundle bundles/parts
      defectlens inspect --server 127.0.0.1:50051 --source parts/test --out answers --overlays --page
    """
    context.obj = {"remote_predictor": _remote_predictor}


if __name__ == "__main__":
    sys.exit(main())
