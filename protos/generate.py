"""Regenerate the Python code of the contract: ``python -m protos.generate [FOLDER]`` (the repository by default)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ("protos/inspection/v1/inspection.proto", "protos/inspection/v1/admin.proto")
GENERATED = tuple(
    proto.replace(".proto", suffix)
    for proto in PROTOS
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
)


def generate(folder: Path) -> None:
    """Write the generated files below ``folder``, in the layout of the repository."""
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}"),
        *(f"--{plugin}_out={folder}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *PROTOS,
    ]
    # The mypy plugins are programs that lie beside the interpreter, which need not be on the PATH.
    plugins = [f"--plugin={name}={Path(sys.executable).parent / name}" for name in _PLUGINS]
    subprocess.run([*command[:3], *plugins, *command[3:]], check=True, cwd=ROOT, capture_output=True)  # noqa: S603
    # grpcio has no types of its own, so half of this stub's own `type: ignore` comments are wrong for mypy.
    for proto in PROTOS:
        stub = folder / proto.replace(".proto", "_pb2_grpc.pyi")
        stub.write_text("# mypy: ignore-errors\n" + stub.read_text())


_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")

if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
