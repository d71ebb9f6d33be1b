"""Removing files that need not be kept any longer. Their records stay, and each removal is a record itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import Connection, delete, func, select

from serving.audit import append, schema
from serving.audit.bundles import MEDIA as BUNDLE_MEDIA
from serving.audit.database import writing
from serving.audit.records import Prune
from serving.audit.store import Store
from vision.errors import SettingsError

# Of one record; a server that records waits so long for its turn.
_GROUP = 500
_DAY_NS = 86_400 * 10**9
# A file without a record may belong to one that is just being written.
_ORPHAN_S = 3600.0
_files = schema.files.c


@dataclass(frozen=True, slots=True)
class Retention:
    """How long files are kept; None keeps them for ever.

    ``passes_days``: those of passed parts. ``others_days``: of parts that were rejected, went to review, could not
    be judged, or were called defective by a person. ``max_bytes``: most of all files; the oldest passes go first, then
    the oldest others. A file that several records name is kept as long as the longest kept of them. Models that
    answered are always kept.
    """

    passes_days: float | None = None
    others_days: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        days = (self.passes_days, self.others_days)
        if all(value is None for value in (*days, self.max_bytes)):
            raise SettingsError("say what is to be pruned: an age of passed parts or others in days, or a size")
        if any(value is not None and value < 0 for value in (*days, self.max_bytes)):
            raise SettingsError(f"ages and sizes are at least 0; got {self}")
        passes, others = days
        if others is not None and (passes is None or passes > others):
            raise SettingsError(f"passed parts must not be kept longer than others; got {passes} and {others} days")

    @property
    def rule(self) -> str:
        """In words, for the record."""
        named = (("passed parts", self.passes_days), ("other parts", self.others_days))
        parts = [f"{name} after {days:g} days" for name, days in named if days is not None]
        if self.max_bytes is not None:
            parts.append(f"all files within {self.max_bytes} bytes")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Pruned:
    """Files that were removed (or would be), and their bytes. ``orphans``: left by a crash, named by no record.
    ``left``: bytes that are still there.
    """

    files: int
    size: int
    orphans: int
    left: int


def prune(
    store: Store,
    retention: Retention,
    *,
    person: str,
    dry_run: bool = False,
    clock_ns: Callable[[], int] = time.time_ns,
) -> Pruned:
    """Remove what is too old or too much. A server may go on recording meanwhile.

    Raises:
        AuditError: the store cannot be written to.
    """
    now_ns = clock_ns()
    with store.reading() as connection:
        chosen = list(_choose(connection, retention, now_ns))
        total = connection.execute(select(func.coalesce(func.sum(_files.size), 0))).scalar_one()
    removed = size = 0
    groups = iter(chosen)
    while group := dict(islice(groups, _GROUP)):
        if not dry_run:
            group = _remove(store, group, retention, person, now_ns, clock_ns)
        removed += len(group)
        size += sum(group.values())
    orphans = 0 if dry_run else _remove_orphans(store)
    return Pruned(removed, size, orphans, total - size)


def _choose(connection: Connection, retention: Retention, now_ns: int) -> Iterator[tuple[str, int]]:
    """SHA-256 and size of what is to go, in the order in which it goes."""
    total = connection.execute(select(func.coalesce(func.sum(_files.size), 0))).scalar_one()
    for longer, days in ((False, retention.passes_days), (True, retention.others_days)):
        query = select(_files.sha256, _files.size, _files.time_ns).where(
            _files.kept_longer == longer, _files.media != BUNDLE_MEDIA
        )
        for sha256, size, time_ns in connection.execute(query.order_by(_files.time_ns)):
            too_old = days is not None and time_ns < now_ns - days * _DAY_NS
            too_much = retention.max_bytes is not None and total > retention.max_bytes
            if not too_old and not too_much:
                break
            total -= size
            yield sha256, size


def _remove(
    store: Store,
    group: dict[str, int],
    retention: Retention,
    person: str,
    now_ns: int,
    clock_ns: Callable[[], int],
) -> dict[str, int]:
    """First the record, then the files: whatever is interrupted, a file that is gone has its record."""
    with store.guarded(), writing(store.engine) as connection:
        # Recorded again since it was chosen: it stays.
        query = select(_files.sha256, _files.size).where(_files.sha256.in_(group), _files.time_ns < now_ns)
        group = {row.sha256: row.size for row in connection.execute(query)}
        if not group:
            return {}
        record = Prune(rule=retention.rule, person=person, removed=tuple(group), size=sum(group.values()))
        append.append(connection, store.files, store.store_id, [record], (), clock_ns())
        connection.execute(delete(schema.files).where(_files.sha256.in_(group)))
    with store.guarded(), writing(store.engine) as connection:
        # A frame like one of these may have come in between: it was found there and not written anew.
        back = set(connection.execute(select(_files.sha256).where(_files.sha256.in_(group))).scalars())
        store.files.remove(sha256 for sha256 in group if sha256 not in back)
    return group


def _remove_orphans(store: Store) -> int:
    """What a crash left between a file and its record, or between a prune and its file."""
    removed = 0
    names = (path for path in store.files.folder.glob("??/*") if path.is_file())
    oldest = time.time() - _ORPHAN_S
    while group := {path.name: path for path in islice(names, _GROUP)}:
        with store.guarded(), writing(store.engine) as connection:
            known = set(connection.execute(select(_files.sha256).where(_files.sha256.in_(group))).scalars())
            for name, path in group.items():
                if name not in known and path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)
                    removed += 1
    return removed
