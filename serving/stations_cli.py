"""The commands ``masters``, ``override`` and ``forget``, for who stands at the line."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vision.console import EXIT_FAILURE, exits_cleanly, finish, json_option, say
from vision.errors import DataError, SettingsError
from vision.preprocess import SUFFIXES

if TYPE_CHECKING:
    from protos.inspection.v1 import admin_pb2 as pb

_GOOD = "good"
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_admin = click.option("--admin", required=True, metavar="ADDR", help="HOST:PORT that the server got as --admin.")
_station = click.option("--station", required=True, metavar="NAME", help="One that the server was started with.")


@click.command()
@_admin
@_station
@click.option("--masters", "folder", type=_FOLDER, required=True, help="Folder with today's pictures of master parts.")
@click.option("--by", default=None, help="Who checks; your user name if not given.")
@click.option("--model", default="", help="The model that inspects them; the default one if not given.")
@json_option
@exits_cleanly
def masters(admin: str, station: str, folder: Path, by: str | None, model: str, as_json: bool) -> None:
    """Check a station at the start of a shift: are known-good and known-bad parts still judged as the last time?

    FOLDER/good holds pictures of good master parts, every other folder in it those of defective ones. Take them anew
    with the station's camera, and give a part's picture the same file name every time. A failed check stops the
    station: its frames are refused until a check passes or somebody overrides it. Exit code 1 if the check fails.

    \b
    Example:
      defectlens masters --admin 127.0.0.1:50052 --station press-3 --masters masters/
    """
    from serving.admin_client import AdminClient  # loads gRPC, which `--help` need not

    with AdminClient(admin) as client:
        check = client.check_station(station, read_masters(folder), by=by or getpass.getuser(), model=model)
    _show(check)
    if as_json:
        finish(_figures(check), as_json=True)
    if not check.passed:
        raise SystemExit(EXIT_FAILURE)


@click.command()
@_admin
@_station
@click.option("--by", required=True, help="Who takes the responsibility.")
@click.option("--reason", required=True, help="Why; it is written down.")
@click.option("--token-file", type=_FILE, required=True, help="Holds the token that the server was started with.")
@json_option
@exits_cleanly
def override(admin: str, station: str, by: str, reason: str, token_file: Path, as_json: bool) -> None:
    """Let a stopped station serve until its next check. Who did it, and why, is written down by the server.

    \b
    Example:
      defectlens override --admin 127.0.0.1:50052 --station press-3 --by "A. Kern" \\
        --reason "master B-2 is chipped, a new one is on its way" --token-file token
    """
    from serving.admin_client import AdminClient

    try:
        token = token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the token {token_file} cannot be read: {error}") from error
    with AdminClient(admin) as client:
        status = client.override_station(station, token=token, by=by, reason=reason)
    say(f"station {status.station} serves: {status.reason}")
    if as_json:
        finish({"station": status.station, "serving": status.serving, "reason": status.reason}, as_json=True)


@click.command()
@click.argument("camera")
@_admin
@exits_cleanly
def forget(camera: str, admin: str) -> None:
    """Forget what the watch has seen of CAMERA: its alarms end, and its next frames are taken for usual.

    After a repair, or where a change is meant to stay. What differs from the *calibration* is found again: then the
    bundle needs a new reference (defectlens reference).

    \b
    Example:
      defectlens forget left --admin 127.0.0.1:50052
    """
    from serving.admin_client import AdminClient

    with AdminClient(admin) as client:
        count = client.forget_camera(camera, by=getpass.getuser())
    say(f"camera {camera} is forgotten" if count else f"nothing is known of a camera {camera!r}")
    if not count:
        raise SystemExit(EXIT_FAILURE)


def read_masters(folder: Path) -> list[tuple[str, bool, bytes]]:
    """Name, whether it is good, and picture of each master part.

    Raises:
        DataError: there are none, or none of one kind.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    inside = [path.relative_to(folder) for path in files]
    kinds = {path.parts[0] == _GOOD for path in inside if len(path.parts) > 1}
    if kinds != {True, False}:
        raise DataError(
            f"{folder} needs pictures of good master parts in {_GOOD}/ and of defective ones in other folders; found "
            f"{len(files)} pictures"
        )
    return [
        (path.with_suffix("").as_posix(), path.parts[0] == _GOOD, file.read_bytes())
        for path, file in zip(inside, files, strict=True)
        if len(path.parts) > 1
    ]


def _show(check: pb.StationCheck) -> None:
    against = "compared with the last check of this bundle" if check.compared else "the first check of this bundle"
    say(f"station {check.station}: {'passed' if check.passed else 'FAILED, and is stopped'} ({against})")
    for part in check.parts:
        kind = "good" if part.good else "bad"
        margin = f"{part.margin:8.3f}" if part.HasField("margin") else f"{'':8}"
        last = f" (last time {part.last_margin:.3f})" if part.HasField("last_margin") else ""
        note = f"  <- {part.problem}" if part.problem else ""
        say(f"  {part.name:24} {kind:5} margin {margin}{last}{note}")
    for problem in check.problems:
        if not any(problem.startswith(f"{part.name}: ") for part in check.parts):
            say(f"  {problem}")


def _figures(check: pb.StationCheck) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    figures: dict[str, Any] = MessageToDict(
        check, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return figures
