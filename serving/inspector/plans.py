"""Who looks at what next: each person works through a plan of their own, and no part lies before two of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.audit import Store, next_for_review, still_waiting
from vision.types import Verdict

_AHEAD = 20
FOLLOWING = 2
"""Parts whose pictures are fetched while somebody looks at the one before them."""
# A part that was shown to somebody who then went away is free again after so long.
_CLAIM_S = 120.0
Which = tuple[str, str]


@dataclass(slots=True)
class _Plan:
    """``which``: camera and lot. ``after``: the last doubtful and the last sampled answer that were planned."""

    which: Which
    seqs: deque[int] = field(default_factory=deque)
    after: tuple[int, int] = (0, 0)


class Plans:
    """One for the whole page; safe for threads.

    The order of the worklist mixes passed parts in at places that count from its beginning, so it is taken in whole
    stretches and then worked through.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._plans: dict[str, _Plan] = {}
        self._claims: dict[int, tuple[str, float]] = {}
        self._lock = threading.Lock()

    def upcoming(self, store: Store, person: str, which: Which, *, claims: bool = True) -> list[int]:
        """The next answer and the ``FOLLOWING`` ones after it, as far as there are any.

        Args:
            claims: False for somebody who only looks: the part stays free for others.
        """
        with self._lock:
            plan = self._plans.get(person)
            if plan is None or plan.which != which:
                plan = self._plans[person] = _Plan(which)
            self._tidy(store, person, plan)
            if len(plan.seqs) <= FOLLOWING:
                self._refill(store, person, plan)
            found = list(plan.seqs)[: 1 + FOLLOWING]
            if found and claims:
                self._claims[found[0]] = (person, self._clock() + _CLAIM_S)
            return found

    def skip(self, person: str, answer: int) -> None:
        """Leave a part open; it comes again when all others were looked at."""
        with self._lock:
            plan = self._plans.get(person)
            if plan is not None and answer in plan.seqs:
                plan.seqs.remove(answer)
            if self._claims.get(answer, ("", 0.0))[0] == person:
                del self._claims[answer]

    def take(self, answer: int, person: str) -> None:
        """A part comes back to somebody who took back what they said."""
        with self._lock:
            self._claims[answer] = (person, self._clock() + _CLAIM_S)
            plan = self._plans.get(person)
            if plan is not None and answer not in plan.seqs:
                plan.seqs.appendleft(answer)

    def release(self, person: str) -> None:
        """Somebody goes."""
        with self._lock:
            self._plans.pop(person, None)
            self._claims = {seq: held for seq, held in self._claims.items() if held[0] != person}

    def _tidy(self, store: Store, person: str, plan: _Plan) -> None:
        now = self._clock()
        self._claims = {seq: held for seq, held in self._claims.items() if held[1] > now}
        waiting = still_waiting(store, plan.seqs)
        plan.seqs = deque(seq for seq in plan.seqs if seq in waiting and self._is_free(seq, person))

    def _refill(self, store: Store, person: str, plan: _Plan) -> None:
        for _ in range(2):
            camera, lot = (name or None for name in plan.which)
            rows = next_for_review(store, limit=_AHEAD, after=plan.after, camera=camera, lot=lot)
            kinds: tuple[list[int], list[int]] = ([plan.after[0]], [plan.after[1]])
            for row in rows:
                kinds[row.verdict is Verdict.PASS].append(row.seq)
                if row.seq not in plan.seqs and self._is_free(row.seq, person):
                    plan.seqs.append(row.seq)
            plan.after = (max(kinds[0]), max(kinds[1]))
            if plan.seqs or plan.after == (0, 0):
                return
            plan.after = (0, 0)  # all were looked at: those that were left open come again

    def _is_free(self, seq: int, person: str) -> bool:
        return self._claims.get(seq, (person, 0.0))[0] == person
