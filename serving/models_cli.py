"""The commands below ``defectlens models``."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from vision.console import exits_cleanly, finish, json_option, say

if TYPE_CHECKING:
    from protos.inspection.v1 import admin_pb2 as pb
    from protos.inspection.v1 import inspection_pb2 as frames_pb
    from serving.admin_client import AdminClient

_admin = click.option("--admin", required=True, metavar="ADDR", help="HOST:PORT that the server got as --admin.")
_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
_name = click.argument("name")
_by = click.option("--by", default=getpass.getuser, help="Who changes it, for the audit trail. Default: the user.")
_reason = click.option("--reason", default="", help="Why, for the audit trail.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def models() -> None:
    """Load, try out, promote and roll back the models of a running server.

    Versions of one model have one name: `defectlens export --name parts --version 2`.

    \b
    Example:
      defectlens serve --bundle bundles/parts --admin 127.0.0.1:50052
      defectlens models shadow bundles/parts-2 --share 0.2 --admin 127.0.0.1:50052
      defectlens models list --admin 127.0.0.1:50052
      defectlens models promote parts --admin 127.0.0.1:50052
    """


@models.command("list")
@_admin
@json_option
@exits_cleanly
def list_models(admin: str, as_json: bool) -> None:
    """Show what serves, what is on trial, and what was refused.

    \b
    Example:
      defectlens models list --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        reply = client.models()
    for state in reply.models:
        _show(state)
    for bundle in reply.refused:
        say(f"refused {bundle.folder}: {bundle.reason}")
    _finish(reply, as_json=as_json)


@models.command()
@_folder
@_admin
@_by
@_reason
@json_option
@exits_cleanly
def load(folder: Path, admin: str, by: str, reason: str, as_json: bool) -> None:
    """Load a bundle; it takes over from the version of its name. A bad one changes nothing.

    \b
    Example:
      defectlens models load bundles/parts-2 --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        _done(client.load(folder.resolve(), by=by, reason=reason), as_json=as_json)


@models.command()
@_folder
@_admin
@click.option("--share", type=click.FloatRange(0, 1, min_open=True), default=0.1, show_default=True, help="Of frames.")
@_by
@_reason
@json_option
@exits_cleanly
def shadow(folder: Path, admin: str, share: float, by: str, reason: str, as_json: bool) -> None:
    """Load a bundle as a candidate: it sees a share of the frames and is never heard.

    \b
    Example:
      defectlens models shadow bundles/parts-2 --share 0.2 --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        _done(client.shadow(folder.resolve(), share, by=by, reason=reason), as_json=as_json)


@models.command()
@_name
@_admin
@_by
@_reason
@json_option
@exits_cleanly
def promote(name: str, admin: str, by: str, reason: str, as_json: bool) -> None:
    """Let the candidate take over.

    \b
    Example:
      defectlens models promote parts --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        _done(client.promote(name, by=by, reason=reason), as_json=as_json)


@models.command()
@_name
@_admin
@_by
@_reason
@json_option
@exits_cleanly
def rollback(name: str, admin: str, by: str, reason: str, as_json: bool) -> None:
    """Let the version before take over again.

    \b
    Example:
      defectlens models rollback parts --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        _done(client.rollback(name, by=by, reason=reason), as_json=as_json)


@models.command()
@_name
@_admin
@_by
@_reason
@json_option
@exits_cleanly
def withdraw(name: str, admin: str, by: str, reason: str, as_json: bool) -> None:
    """Take the candidate away.

    \b
    Example:
      defectlens models withdraw parts --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        _done(client.withdraw(name, by=by, reason=reason), as_json=as_json)


@models.command()
@_name
@_admin
@json_option
@exits_cleanly
def disagreements(name: str, admin: str, as_json: bool) -> None:
    """List the latest frames that the candidate judges differently.

    \b
    Example:
      defectlens models disagreements parts --admin 127.0.0.1:50052
    """
    with _connect(admin) as client:
        found = client.disagreements(name)
    for one in found:
        names = " ".join(value for value in (one.camera_id, one.lot, one.part_id, one.request_id) if value)
        say(f"{names}: serving {_opinion(one.serving)}, candidate {_opinion(one.candidate)}")
    if as_json:
        finish({"disagreements": [_plain(one) for one in found]}, as_json=True)


def _connect(address: str) -> AdminClient:
    from serving.admin_client import AdminClient  # loads gRPC, which `--help` need not

    return AdminClient(address)


def _done(state: pb.ModelState, *, as_json: bool) -> None:
    _show(state)
    _finish(state, as_json=as_json)


def _show(state: pb.ModelState) -> None:
    note = " (default)" if state.is_default else ""
    say(f"{state.name}{note}: serving {_identity(state.serving)}")
    if state.HasField("previous"):
        say(f"  before it: {_identity(state.previous)}")
    if state.HasField("candidate"):
        figures = state.shadow
        say(
            f"  candidate: {_identity(state.candidate)}, sees {figures.share:.0%} of the frames: {figures.compared} "
            f"compared, {figures.disagreements} judged differently, {figures.failed} failed, {figures.skipped} "
            f"skipped; scores differ by {figures.largest_score_difference:.3g} at most"
        )


def _identity(model: frames_pb.ModelIdentity) -> str:
    return f"version {model.version} ({model.bundle_digest[:8]})"


def _opinion(opinion: pb.Opinion) -> str:
    from protos.inspection.v1 import inspection_pb2 as frames_pb

    score = f" {opinion.anomaly_score:.3f}" if opinion.HasField("anomaly_score") else ""
    return f"{frames_pb.Verdict.Name(opinion.verdict)} {opinion.predicted}{score}"


def _plain(message: Message) -> dict[str, object]:
    plain: dict[str, object] = MessageToDict(message, preserving_proto_field_name=True)
    return plain


def _finish(message: Message, *, as_json: bool) -> None:
    if as_json:
        finish(_plain(message), as_json=True)
