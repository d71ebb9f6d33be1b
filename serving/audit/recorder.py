"""Records answers while a server runs: one thread takes whatever waits, writes it in one go, and tells who waits.

While one group is being written the next one gathers, so that a slow disk makes larger groups and not a longer line.
The event loop never waits for a disk; in strict mode answers do.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import zip_longest

from sqlalchemy import select

from serving.audit import schema
from serving.audit.append import Blob
from serving.audit.drafts import Draft, answer_of
from serving.audit.records import Action, Answer, Record, short
from serving.audit.signing import Signer, make_checkpoint
from serving.audit.store import Store
from serving.logs import Event
from vision.errors import AuditError, OverloadedError

_MIB = 1024 * 1024
# Records of one group; bounds how long the first of them waits for the others.
_LARGEST_GROUP = 128
_RETRY_S = 1.0
# A store that fails, fails for every frame: said once, and then as often as this.
_WARN_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecorderCounts:
    """What became of everything that was to be recorded. Always: offered = recorded + failed + dropped + waiting.

    ``failed``: could not be written, and whoever waited was told, or has gone. ``dropped``: not even tried for want of
    room, or given up at the end. ``problem``: why writing fails now; empty if it does not. ``seconds``: spent
    writing, all together.
    """

    offered: int
    recorded: int
    failed: int
    dropped: int
    waiting: int
    waiting_bytes: int
    groups: int
    checkpoints: int
    seconds: float
    problem: str


@dataclass(slots=True)
class _Entry:
    """Something to be recorded; ``done`` is None where nobody waits for it. ``record``: once it is put into words."""

    what: Draft | Action
    done: Future[int] | None
    record: Record | None = None
    blobs: list[Blob] = field(default_factory=list)
    failed_before: bool = False

    @property
    def size(self) -> int:
        return self.what.size if isinstance(self.what, Draft) else 0


class Recorder:
    """Appends to a store from a thread of its own, until ``close``.

    Args:
        sample_rate: share of passed parts that are marked for a person.
        checkpoint_every: records between two checkpoints.
        max_waiting, max_bytes: bounds of the line.
    """

    def __init__(
        self,
        store: Store,
        signer: Signer,
        *,
        sample_rate: float = 0.0,
        checkpoint_every: int = 1000,
        max_waiting: int = 1024,
        max_bytes: int = 512 * _MIB,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._signer = signer
        self._sample_rate = sample_rate
        self._checkpoint_every = checkpoint_every
        self._max_waiting, self._max_bytes = max_waiting, max_bytes
        self._clock, self._clock_ns = clock, clock_ns
        self._draw = random.SystemRandom().random
        self._line: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._offered = self._recorded = self._failed = self._dropped = 0
        self._busy = self._bytes = self._groups = self._checkpoints = 0
        self._seconds = 0.0
        self._problem = ""
        self._warned = -_WARN_S
        self._since_checkpoint = self._tuned_at = 0
        self._thread = threading.Thread(target=self._run, name="audit")
        self._thread.start()

    def submit(self, what: Draft | Action, *, wait: bool) -> Future[int] | None:
        """Put something into the line; returns at once.

        Args:
            wait: whether somebody waits: the future has the record's number, or the ``AuditError``. Otherwise what does
                not fit is dropped and counted.

        Raises:
            OverloadedError: ``wait``, and the line is full.
        """
        done: Future[int] | None = Future() if wait else None
        entry = _Entry(what, done)
        with self._changed:
            full = len(self._line) >= self._max_waiting or (self._line and self._bytes + entry.size > self._max_bytes)
            if (full or self._closing) and wait:
                raise OverloadedError(
                    f"the audit store is behind: {len(self._line)} answers wait to be recorded, and without its record "
                    "none may leave; a faster disk helps, or fewer frames",
                    retry_after_s=_RETRY_S,
                )
            self._offered += 1
            if full or self._closing:
                self._dropped += 1
                self._warn("audit_dropped", reason=self._problem or "the line is full", dropped=self._dropped)
                return None
            self._line.append(entry)
            self._bytes += entry.size
            self._changed.notify()
        return done

    def give_up(self, done: Future[int]) -> None:
        """Whoever waited does not any more; what is not being written yet will not be."""
        done.cancel()

    def counts(self) -> RecorderCounts:
        with self._changed:
            return RecorderCounts(
                self._offered,
                self._recorded,
                self._failed,
                self._dropped,
                len(self._line) + self._busy,
                self._bytes,
                self._groups,
                self._checkpoints,
                self._seconds,
                self._problem,
            )

    def close(self) -> None:
        """Write what waits, sign the end of the chain, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._line and not self._closing:
                    self._changed.wait()
                if self._problem and not self._closing:  # try again now and then, and whenever somebody waits
                    self._changed.wait_for(lambda: self._closing or self._somebody_waits(), _RETRY_S)
                group = self._take()
            if group:
                self._write(group)
            elif self._closing:
                break
            if self._since_checkpoint >= self._checkpoint_every:
                self._checkpoint()
        self._checkpoint()

    def _somebody_waits(self) -> bool:
        return any(entry.done is not None for entry in self._line)

    def _take(self) -> list[_Entry]:
        group: list[_Entry] = []
        while self._line and len(group) < _LARGEST_GROUP:
            entry = self._line.popleft()
            self._bytes -= entry.size
            if entry.done is not None and not entry.done.set_running_or_notify_cancel():
                self._failed += 1  # whoever waited has gone
                continue
            group.append(entry)
        self._busy = len(group)
        return group

    def _write(self, group: list[_Entry]) -> None:
        start = self._clock()
        ready = [entry for entry in group if self._put_into_words(entry)]
        if ready and self._is_there(ready[0]):
            # It had failed, and yet it was written: a connection can be lost after the commit.
            self._settle([entry for entry in ready if entry.failed_before])
            ready = [entry for entry in ready if not entry.failed_before]
        try:
            blobs = [blob for entry in ready for blob in entry.blobs]
            seqs = self._store.append([entry.record for entry in ready if entry.record is not None], blobs)
        except AuditError as error:
            self._fails(str(error))
            self._settle([entry for entry in ready if entry.done is not None], error)
            self._put_back([entry for entry in ready if entry.done is None])
        else:
            self._works()
            self._settle(ready, seqs=seqs)
            self._since_checkpoint += len(seqs)
        with self._changed:
            self._groups += 1
            self._seconds += self._clock() - start

    def _put_into_words(self, entry: _Entry) -> bool:
        """Make the entry's record; False where that cannot be done, which must not take the others with it."""
        try:
            if entry.record is not None:
                return True
            if isinstance(entry.what, Action):
                entry.record = entry.what
            else:
                entry.record, entry.blobs = answer_of(entry.what, sample_rate=self._sample_rate, draw=self._draw)
        except Exception as error:  # a bug of ours; the thread must live
            _log.exception(Event("audit_bug"))
            self._settle([entry], AuditError(f"the answer could not be put into a record: {error!r}"))
            return False
        return True

    def _put_back(self, entries: list[_Entry]) -> None:
        """What nobody waits for is tried again, unless the server ends."""
        with self._changed:
            self._busy -= len(entries)
            if self._closing:
                self._dropped += len(entries)
                return
            for entry in reversed(entries):
                entry.failed_before = True
                self._line.appendleft(entry)
                self._bytes += entry.size

    def _settle(self, entries: Sequence[_Entry], error: AuditError | None = None, seqs: Sequence[int] = ()) -> None:
        with self._changed:
            self._busy -= len(entries)
            if error is None:
                self._recorded += len(entries)
            else:
                self._failed += len(entries)
        for entry, seq in zip_longest(entries, seqs, fillvalue=0):
            if not isinstance(entry, _Entry) or entry.done is None:
                continue
            if error is None:
                entry.done.set_result(seq)
            else:
                entry.done.set_exception(error)

    def _is_there(self, entry: _Entry) -> bool:
        """Whether the first of those that had failed is in the store all the same; they came all or none."""
        record = entry.record
        if not entry.failed_before or not isinstance(record, Answer):
            return False
        answers = schema.answers.c
        query = select(answers.seq).where(answers.request_id == short(record.request_id))
        try:
            with self._store.reading() as connection:
                seq = connection.execute(query.order_by(answers.seq.desc()).limit(1)).scalar()
            return seq is not None and self._store.answer(seq).received_ns == record.received_ns
        except AuditError:
            return False

    def _checkpoint(self) -> None:
        try:
            made = make_checkpoint(self._store, self._signer, self._clock_ns())
            if made is not None and made.seq >= 2 * self._tuned_at:
                self._store.tune()
                self._tuned_at = made.seq
        except AuditError as error:
            self._fails(str(error))
            return
        self._since_checkpoint = 0
        with self._changed:
            self._checkpoints += made is not None

    def _fails(self, problem: str) -> None:
        with self._changed:
            self._problem = problem
            self._warn("audit_fails", reason=problem)

    def _works(self) -> None:
        with self._changed:
            mended, self._problem = self._problem, ""
        if mended:
            self._warned = -_WARN_S
            _log.warning(Event("audit_works_again", was=mended))

    def _warn(self, event: str, **fields: object) -> None:
        now = self._clock()
        if now - self._warned >= _WARN_S:
            self._warned = now
            _log.error(Event(event, **fields))
