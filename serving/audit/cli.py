"""The commands below ``defectlens audit``."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import click

from serving.audit.place import AuditPlace
from serving.audit.search import Search
from serving.audit.signing import (
    PUBLIC_SUFFIX,
    PublicKey,
    Signer,
    kept_checkpoints,
    make_checkpoint,
    read_checkpoints,
    write_checkpoints,
)
from serving.audit.store import Store
from serving.chosen_answers import nanoseconds
from vision.console import EXIT_FAILURE, exits_cleanly, finish, json_option, say
from vision.engine import Provider
from vision.errors import SettingsError

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_store = click.argument("store", metavar="DIR_OR_URL")
_files = click.option("--audit-files", type=_FOLDER, help="Where frames and maps lie, if not beside the database.")
_public = click.option(
    "--public-key", type=_FILE, help="Key that checks signatures. Default: the one beside the store."
)
_part = click.option("--part", help="All answers about this part.")
_lot = click.option("--lot", help="All answers about this lot.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def audit() -> None:
    """Prove, replay, export and prune what `serve --audit` recorded (docs/audit.md).

    \b
    Example:
      defectlens serve --bundle bundles/parts --audit audit
      defectlens audit verify audit
      defectlens audit replay audit --part A-17
      defectlens audit export audit --part A-17 --html A-17.html
    """


@audit.command()
@_store
@_files
@_public
@click.option("--checkpoints", type=_FILE, help="Exported ones, kept where nobody here could change them.")
@click.option("--no-files", is_flag=True, help="Check the records alone, and not the bytes of every frame.")
@json_option
@exits_cleanly
def verify(
    store: str,
    audit_files: Path | None,
    public_key: Path | None,
    checkpoints: Path | None,
    no_files: bool,
    as_json: bool,
) -> None:
    """Find whatever was changed, removed, inserted or reordered. Exit code 1 if something was.

    \b
    Example:
      defectlens audit verify audit
      defectlens audit verify audit --checkpoints /media/safe/checkpoints.jsonl --public-key /media/safe/key.pem.pub
    """
    from serving.audit.verify import verify as check

    place = AuditPlace.of(store, files=audit_files)
    key = _key(place, public_key)
    exported = () if checkpoints is None else tuple(read_checkpoints(checkpoints))
    with Store.open(place) as opened:
        found = check(opened, key=key, checkpoints=exported, files=not no_files, progress=_saying())
    for problem in found.problems:
        say(f"! {problem}")
    if key is None:
        say("note: no public key was found, so no signature was checked; give one with --public-key")
    elif public_key is None:
        say("note: the public key lies beside the store, where whoever changed the store could change it too")
    if found.intact and found.signed < found.records:
        say(f"note: records {found.signed + 1} to {found.records} are not signed yet")
    say(f"{found.records} records, {found.files} files: {'intact' if found.intact else 'NOT INTACT'}")
    if as_json:
        finish({**asdict(found), "intact": found.intact}, as_json=True)
    if not found.intact:
        raise SystemExit(EXIT_FAILURE)


@audit.command()
@_store
@_files
@_part
@_lot
@click.option("--seq", type=int, help="The answer of this record.")
@click.option("--bundle", "bundles", type=_FOLDER, multiple=True, help="A model that the store does not hold.")
@click.option("--provider", type=click.Choice(get_args(Provider)), help="Default: the one that gave the answer.")
@json_option
@exits_cleanly
def replay(
    store: str,
    audit_files: Path | None,
    part: str | None,
    lot: str | None,
    seq: int | None,
    bundles: tuple[Path, ...],
    provider: Provider | None,
    as_json: bool,
) -> None:
    """Run stored frames through the stored model again, and compare. Exit code 1 if one is not reproduced.

    On the provider that gave the answer the scores are the same bit for bit; on another one they are within the
    published tolerance.

    \b
    Example:
      defectlens audit replay audit --part A-17
      defectlens audit replay audit --lot L2 --provider openvino
    """
    from serving.audit.export import every
    from serving.audit.replay import Replayer

    with Store.open(store, files=audit_files) as opened:
        seqs = [row.seq for row in every(opened, _wanted(part, lot))] if seq is None else [seq]
        if not seqs:
            raise SettingsError(f"the store has no answer of {part or lot!r}")
        with Replayer(opened, bundles=bundles, provider=provider) as replayer:
            results = [replayer.replay(one) for one in seqs]
    for one in results:
        if one.problem:
            say(f"record {one.seq}: not replayed: {one.problem}")
            continue
        how = "bit for bit" if one.bitwise else "within the tolerance" if one.reproduced else "NOT REPRODUCED"
        say(
            f"record {one.seq}: {one.verdict_then.name} then ({one.provider_then}), {one.verdict.name} now "
            f"({one.provider}): {how}; score {one.score_then} then, {one.score} now"
        )
    figures: dict[str, Any] = {
        "answers": len(results),
        "bitwise": sum(one.bitwise for one in results),
        "reproduced": sum(one.reproduced for one in results),
        "not_replayed": sum(bool(one.problem) for one in results),
    }
    rows = [{**asdict(one), "verdict": one.verdict.name, "verdict_then": one.verdict_then.name} for one in results]
    finish(figures | ({"replays": rows} if as_json else {}), as_json=as_json)
    if figures["reproduced"] < len(results):
        raise SystemExit(EXIT_FAILURE)


@audit.command()
@_store
@_files
@_public
@_part
@_lot
@click.option("--since", metavar="TIME", help="ISO 8601, UTC unless it says else; inclusive.")
@click.option("--until", metavar="TIME", help="Likewise; exclusive.")
@click.option("--parquet", type=_FILE, help="Write a table here; needs the extra `parquet`.")
@click.option("--html", type=_FILE, help="Write an evidence sheet of a part or a lot here.")
@json_option
@exits_cleanly
def export(
    store: str,
    audit_files: Path | None,
    public_key: Path | None,
    part: str | None,
    lot: str | None,
    since: str | None,
    until: str | None,
    parquet: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Write answers and reviews as a table, or as a sheet with pictures that holds everything in one file.

    \b
    Example:
      defectlens audit export audit --parquet answers.parquet --since 2026-01-01
      defectlens audit export audit --lot L2 --html L2.html
    """
    from serving.audit.evidence_sheet import write_evidence
    from serving.audit.export import write_parquet

    if parquet is None and html is None:
        raise SettingsError("say what is to be written: --parquet FILE or --html FILE")
    if html is not None and not part and not lot:
        raise SettingsError("an evidence sheet is of a part or a lot; give --part or --lot")
    place = AuditPlace.of(store, files=audit_files)
    wanted = Search(part=part, lot=lot, since_ns=nanoseconds(since), until_ns=nanoseconds(until))
    figures: dict[str, Any] = {}
    with Store.open(place) as opened:
        if parquet is not None:
            figures |= {"rows": write_parquet(opened, wanted, parquet), "parquet": parquet}
        if html is not None:
            names = [f"{what} {name}" for what, name in (("part", part), ("lot", lot)) if name]
            key = _key(place, public_key)
            answers = write_evidence(opened, wanted, html, title=" of ".join(names), key=key)
            figures |= {"answers": answers, "html": html}
    finish(figures, as_json=as_json)


@audit.command()
@_store
@_files
@click.option("--out", type=_FILE, required=True, help="JSON lines; keep them where nobody here can change them.")
@click.option("--public-key-out", type=_FILE, help="Write the public key here, to be kept with them.")
@click.option("--sign", is_flag=True, help="Sign the end of the chain first; needs the private key.")
@click.option("--audit-key", type=_FILE, help="The private key, if it is not beside the store.")
@json_option
@exits_cleanly
def checkpoints(
    store: str,
    audit_files: Path | None,
    out: Path,
    public_key_out: Path | None,
    sign: bool,
    audit_key: Path | None,
    as_json: bool,
) -> None:
    """Export the signed checkpoints to another machine, from which the store can be proved.

    \b
    Example:
      defectlens audit checkpoints audit --sign --out /media/safe/checkpoints.jsonl \\
        --public-key-out /media/safe/key.pem.pub
    """
    place = AuditPlace.of(store, files=audit_files, key=audit_key)
    with Store.open(place) as opened:
        if sign:
            if not place.key.is_file():
                raise SettingsError(f"there is no private key at {place.key}; name it with --audit-key")
            make_checkpoint(opened, Signer.at(place.key), _now_ns())
        kept = kept_checkpoints(opened)
    write_checkpoints(out, kept)
    if public_key_out is not None:
        key = _key(place, None)
        if key is None:
            raise SettingsError(f"there is no public key at {place.key}{PUBLIC_SUFFIX}")
        public_key_out.write_bytes(key.pem())
    finish({"checkpoints": len(kept), "last_record": kept[-1].seq if kept else 0, "out": out}, as_json=as_json)


@audit.command()
@_store
@_files
@click.option("--passes-days", type=float, help="Keep files of passed parts so long.")
@click.option("--others-days", type=float, help="Keep files of rejects, reviews and escapes so long.")
@click.option("--max-gib", type=float, help="Keep at most so much of files; the oldest passes go first.")
@click.option("--by", default=getpass.getuser, help="Who prunes, for the record. Default: the user.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@json_option
@exits_cleanly
def prune(
    store: str,
    audit_files: Path | None,
    passes_days: float | None,
    others_days: float | None,
    max_gib: float | None,
    by: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove frames and maps that need not be kept any longer; records stay, and the removal is one. Run it from cron.

    \b
    Example:
      defectlens audit prune audit --passes-days 30 --others-days 730
      defectlens audit prune audit --max-gib 500
    """
    from serving.audit.prune import Retention
    from serving.audit.prune import prune as remove

    max_bytes = None if max_gib is None else int(max_gib * 2**30)
    retention = Retention(passes_days, others_days, max_bytes)
    with Store.open(store, files=audit_files) as opened:
        done = remove(opened, retention, person=by, dry_run=dry_run)
    finish({**asdict(done), "dry_run": dry_run}, as_json=as_json)


def _key(place: AuditPlace, given: Path | None) -> PublicKey | None:
    """The public key that was given, or the one beside the private one; None where there is none."""
    beside = place.key.with_name(place.key.name + PUBLIC_SUFFIX)
    if given is None and not beside.is_file():
        return None
    return PublicKey.at(given or beside)


def _wanted(part: str | None, lot: str | None) -> Search:
    if not part and not lot:
        raise SettingsError("say which answers: --part ID or --lot ID")
    return Search(part=part, lot=lot)


def _now_ns() -> int:
    return int(datetime.now(UTC).timestamp() * 1e9)


def _saying() -> Callable[[int], None]:
    """A line now and then while a long job runs."""
    every = 100_000

    def progress(done: int) -> None:
        if done % every < 2000 and done >= every:
            say(f"verify: {done} records")

    return progress
