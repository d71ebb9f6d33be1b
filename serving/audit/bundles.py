"""Bundles in the store: whatever model answers is kept, so that it can answer again in a year."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from sqlalchemy import select

from serving.audit import schema
from serving.audit.append import Blob
from serving.audit.records import Action
from serving.audit.store import Store
from vision.errors import AuditError
from vision.manifest import MANIFEST, read_manifest

KEPT = "model"
"""The action under which a bundle is kept; its subject is the bundle's digest."""
MEDIA = "application/x-defectlens-bundle"
"""Of a bundle's files. They are never pruned."""


def keep_bundle(store: Store, folder: Path, person: str) -> bool:
    """Put a bundle's files into the store, unless it is there already.

    Returns:
        Whether it was put there.

    Raises:
        BundleError: the bundle is not whole.
        AuditError: it cannot be written.
    """
    manifest, digest = read_manifest(folder)
    if _files_of(store, digest) is not None:
        return False
    blobs = {name: Blob.of((folder / name).read_bytes(), MEDIA) for name in (MANIFEST, *manifest.files)}
    details = {
        "name": manifest.name,
        "version": manifest.version,
        "files": {name: blob.ref.sha256 for name, blob in blobs.items()},
    }
    attached = tuple(blob.ref for blob in blobs.values())
    store.append(
        [Action(action=KEPT, person=person, subject=digest, details=details, attached=attached)], blobs.values()
    )
    return True


def restore_bundle(store: Store, digest: str, folder: Path) -> Path:
    """Write a bundle out again.

    Args:
        digest: of the bundle, as answers have it.
        folder: to be made.

    Raises:
        AuditError: it is not in the store, or was changed there.
    """
    files = _files_of(store, digest)
    if files is None:
        raise AuditError(f"the bundle {digest[:12]} is not in the store; give its folder with --bundle")
    for name, sha256 in files.items():
        path = folder / PurePosixPath(name)
        if not path.resolve().is_relative_to(folder.resolve()):
            raise AuditError(f"the bundle {digest[:12]} names a file outside of its folder: {name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.files.read(sha256))
    return folder


def _files_of(store: Store, digest: str) -> Mapping[str, str] | None:
    table = schema.actions.c
    query = select(table.seq).where(table.action == KEPT, table.subject == digest).limit(1)
    with store.reading() as connection:
        seq = connection.execute(query).scalar()
    if seq is None:
        return None
    files: Mapping[str, str] = store.get(seq).body["details"]["files"]
    return files
