"""The command ``defectlens inspector`` and those below it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from serving.beside import listen
from serving.inspector.needs import need_packages
from serving.inspector.oidc import NEEDED, OidcSettings
from vision.console import exits_cleanly, finish, json_option, say, set_up_logging
from vision.errors import SettingsError

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_FOLDER = click.Path(path_type=Path, file_okay=False)
# The secret is never an option: everybody on the machine could read it in the list of processes.
_SECRET = "DEFECTLENS_OIDC_SECRET"  # noqa: S105, the name of a variable
_ROLES = ("viewer", "inspector", "engineer", "admin")
# Browsers that look at the wall never close their connection by themselves.
_GOODBYE_S = 2


def _store_options(command: Callable[..., Any]) -> Callable[..., Any]:
    db = click.option("--db", required=True, metavar="URL", help="Of the audit store: a folder, sqlite:///PATH or "
                      "postgresql://USER@HOST/NAME.")  # fmt: skip
    files = click.option("--audit-files", "files", type=_FOLDER, help="Where frames and maps are, for PostgreSQL.")
    return db(files(command))


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "DEFECTLENS_INSPECTOR"},
)
@click.option(
    "--db", metavar="URL", help="Of the audit store: a folder, sqlite:///PATH or postgresql://USER@HOST/NAME."
)
@click.option("--audit-files", type=_FOLDER, help="Where frames and maps are, for PostgreSQL.")
@click.option("--server", metavar="ADDR", default="", help="HOST:PORT of the inspection server: drift, model figures.")
@click.option("--admin", metavar="ADDR", default="", help="HOST:PORT that it got as --admin: promote and roll back.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for a network.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 takes a free one.")
@click.option("--allow-host", multiple=True, help="A name of this machine, for browsers; repeat it for more.")
@click.option("--certificate", type=_FILE, help="PEM file, for HTTPS.")
@click.option("--certificate-key", type=_FILE, help="Its key.")
@click.option("--oidc", metavar="URL", help="Issuer of an OpenID provider that people may sign in with.")
@click.option("--oidc-client-id", default="", metavar="ID", help="What the provider calls this page.")
@click.option("--oidc-secret-file", type=_FILE, help=f"Whose first line is the client's secret; or set {_SECRET}.")
@click.option("--oidc-title", default="company account", show_default=True, help="What people call the provider.")
@click.option("--oidc-role-claim", default="groups", show_default=True, help="Claim with groups; a.b looks into a.")
@click.option("--oidc-role", multiple=True, metavar="GROUP=ROLE", help="What people of a group may do; repeat it.")
@click.option("--oidc-mapped-only", is_flag=True, help="Let nobody in who has no group of an --oidc-role.")
@click.option("--listen-on", type=int, hidden=True, help="A socket that whoever started this has opened.")
@exits_cleanly
def inspector(db: str | None, listen_on: int | None, **options: Any) -> None:
    """The inspector's page: review queue, line wall, history, quality report, model room.

    It reads the audit store that `defectlens serve --audit` writes, and adds what people say to it.

    \b
    Example:
      defectlens inspector user add eva --role inspector --db audit
      defectlens inspector --db audit --server 127.0.0.1:50051

    Every option can be given by a variable of the environment too: --allow-host by DEFECTLENS_INSPECTOR_ALLOW_HOST.
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    if db is None:
        raise SettingsError("name the audit store: defectlens inspector --db audit")
    need_packages()
    options = {**options, "oidc": _oidc(options)}
    _run(db, listen_on, **{key: value for key, value in options.items() if not key.startswith("oidc_")})


def _oidc(options: dict[str, Any]) -> OidcSettings | None:
    issuer, secret_file = options["oidc"], options["oidc_secret_file"]
    if issuer is None:
        return None
    need_packages(NEEDED, "oidc")
    from serving.audit import Role

    roles: dict[str, Role] = {}
    for text in options["oidc_role"]:
        group, _, role = text.rpartition("=")
        if not group or role not in _ROLES:
            raise SettingsError(f"--oidc-role is GROUP=ROLE with a role of {', '.join(_ROLES)}; got {text!r}")
        roles[group] = Role(role)
    secret = os.environ.get(_SECRET, "") if secret_file is None else _first_line(secret_file)
    return OidcSettings(
        issuer=issuer,
        client_id=options["oidc_client_id"],
        secret=secret,
        title=options["oidc_title"],
        role_claim=options["oidc_role_claim"],
        roles=roles,
        mapped_only=options["oidc_mapped_only"],
    )


def _run(db: str, listen_on: int | None, audit_files: Path | None, allow_host: tuple[str, ...], **options: Any) -> None:
    import uvicorn

    from serving.audit import Store, accounts
    from serving.inspector.app import create_app
    from serving.inspector.settings import PageSettings

    settings = PageSettings(db=db, files=audit_files, hosts=allow_host, **options)
    set_up_logging()
    with Store.open(settings.db, files=settings.files, create=True) as store:
        if not accounts(store):
            say(f"nobody has an account yet: defectlens inspector user add YOUR-NAME --role admin --db {db}")
        if not settings.is_loopback and settings.certificate is None:
            say("warning: passwords travel unencrypted; give --certificate, or put a proxy with HTTPS in front")
        listening = listen(settings.host, settings.port) if listen_on is None else socket.socket(fileno=listen_on)
        scheme = "https" if settings.certificate else "http"
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"the page is at {scheme}://{host}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(
            create_app(settings, store),
            log_level="warning",
            server_header=False,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.certificate_key,
            timeout_graceful_shutdown=_GOODBYE_S,
        )
        uvicorn.Server(config).run(sockets=[listening])


@inspector.group()
def user() -> None:
    """Who may use the page."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), required=True, help="Each may do what those before may.")
@click.option("--password-file", type=_FILE, help="Whose first line is the password; else it is asked for.")
@_store_options
@exits_cleanly
def add_user(name: str, role: str, password_file: Path | None, db: str, files: Path | None) -> None:
    """Make an account. The store is made where there is none.

    \b
    Example:
      defectlens inspector user add eva --role inspector --db audit
    """
    need_packages()
    from serving.audit import Account, Role, Store, add_account
    from serving.inspector.passwords import hash_password

    hashed = hash_password(_password(password_file))
    with Store.open(db, files=files, create=True) as store:
        add_account(store, Account(name, Role(role), hashed), by=_operator())
    say(f"{name} can sign in now, as {role}")


@user.command("password")
@click.argument("name")
@click.option("--password-file", type=_FILE, help="Whose first line is the password; else it is asked for.")
@_store_options
@exits_cleanly
def set_password(name: str, password_file: Path | None, db: str, files: Path | None) -> None:
    """Give an account another password; it is signed out everywhere."""
    need_packages()
    from serving.audit import Store, change_account
    from serving.inspector.passwords import hash_password

    hashed = hash_password(_password(password_file))
    with Store.open(db, files=files) as store:
        change_account(store, name, by=_operator(), password=hashed)
    say(f"{name} has another password")


@user.command("disable")
@click.argument("name")
@click.option("--again", is_flag=True, help="Enable it again.")
@_store_options
@exits_cleanly
def disable(name: str, again: bool, db: str, files: Path | None) -> None:
    """Shut an account out; what it said stays."""
    from serving.audit import Store, change_account

    with Store.open(db, files=files) as store:
        change_account(store, name, by=_operator(), disabled=not again)
    say(f"{name} can sign in again" if again else f"{name} cannot sign in any more")


@user.command("link")
@click.argument("name")
@click.option("--issuer", required=True, help="The OpenID provider, as --oidc names it.")
@click.option("--subject", required=True, help="What the provider calls the person: `sub` of the tokens.")
@_store_options
@exits_cleanly
def link(name: str, issuer: str, subject: str, db: str, files: Path | None) -> None:
    """Give an account to a person of an OpenID provider; its password keeps working."""
    from serving.audit import Store, change_account

    with Store.open(db, files=files) as store:
        change_account(store, name, by=_operator(), provider=(issuer, subject))
    say(f"{subject} of {issuer} signs in as {name}")


@user.command("list")
@_store_options
@json_option
@exits_cleanly
def list_users(db: str, files: Path | None, as_json: bool) -> None:
    """Show all accounts."""
    from serving.audit import Store, accounts

    with Store.open(db, files=files) as store:
        found = accounts(store)
    if as_json:
        finish({one.name: {"role": one.role.value, "disabled": one.disabled} for one in found}, as_json=True)
        return
    for one in found:
        say(f"{one.name:<20} {one.role}{' (disabled)' if one.disabled else ''}")


@inspector.command("export")
@click.option("--out", type=_FOLDER, required=True, help="A new folder.")
@click.option("--overruled", is_flag=True, help="Only parts about which a person disagreed, or was asked.")
@_store_options
@json_option
@exits_cleanly
def export_feedback(out: Path, overruled: bool, db: str, files: Path | None, as_json: bool) -> None:
    """Write what people said as a folder that `defectlens train` reads, with the masks they drew.

    \b
    Example:
      defectlens inspector export --db audit --out feedback
      defectlens train --data feedback --out runs/feedback
    """
    need_packages()
    from serving.audit import Action, Store
    from serving.inspector.feedback import export

    with Store.open(db, files=files) as store:
        done = export(store, out, overruled_alone=overruled)
        details = {"images": done.by_label.total(), "masks": done.masks, "overruled_alone": overruled}
        store.append([Action(action="export-feedback", person=_operator(), subject=str(out), details=details)])
    finish({**done.by_label, "masks": done.masks, "frames_missing": done.missing}, as_json=as_json)


def _operator() -> str:
    """Who types: there is no account of the page behind a command."""
    import getpass

    try:
        return f"command line ({getpass.getuser()})"
    except (KeyError, OSError):
        return "command line"


def _password(file: Path | None) -> str:
    if file is None:
        asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return asked
    return _first_line(file)


def _first_line(file: Path) -> str:
    return (file.read_text(encoding="utf-8").splitlines() or [""])[0]
