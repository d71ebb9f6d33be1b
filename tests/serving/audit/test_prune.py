from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from serving.audit import Action, Blob, PersonVerdict, Prune, Review, Store
from serving.audit.bundles import keep_bundle, restore_bundle
from serving.audit.prune import Retention, prune
from serving.audit.verify import verify
from tests.serving.audit.conftest import Clock
from tests.serving.audit.making import add, answer
from vision.errors import AuditError, SettingsError
from vision.types import Verdict

DAY = 86_400 * 10**9


def contents(store: Store) -> set[bytes]:
    return {path.read_bytes() for path in store.place.files.rglob("*") if path.is_file()}


def test_files_are_kept_by_age_and_verdict(store: Store, clock: Clock) -> None:
    add(store, answer(), content=b"old pass")
    add(store, answer(Verdict.REJECT), content=b"old reject")
    add(store, answer(), content=b"escape")
    store.append([Review(answer=3, person="eva", verdict=PersonVerdict.DEFECT)])
    add(store, answer(), content=b"seen again")
    clock.now += 10 * DAY
    add(store, answer(), content=b"seen again")
    add(store, answer(), content=b"new pass")
    done = prune(store, Retention(passes_days=5, others_days=30), person="eva", clock_ns=clock)
    assert contents(store) == {b"old reject", b"escape", b"seen again", b"new pass"}
    assert (done.files, done.size, done.left) == (1, 8, 34)
    record = store.get(8).record
    assert isinstance(record, Prune)
    assert record.removed == (Blob.of(b"old pass", "").ref.sha256,)
    assert record.rule == "passed parts after 5 days; other parts after 30 days"
    clock.now += 25 * DAY
    prune(store, Retention(passes_days=5, others_days=30), person="eva", clock_ns=clock)
    assert contents(store) == set()
    assert verify(store).intact


def test_too_many_bytes_cost_the_oldest_passes_first(store: Store, clock: Clock) -> None:
    add(store, answer(Verdict.REJECT), content=b"reject 1")
    for number in range(4):
        add(store, answer(), content=b"pass   %d" % number)
    prune(store, Retention(max_bytes=24), person="eva", clock_ns=clock)
    assert contents(store) == {b"reject 1", b"pass   2", b"pass   3"}
    prune(store, Retention(max_bytes=7), person="eva", clock_ns=clock)
    assert contents(store) == set()


def test_a_dry_run_changes_nothing(store: Store, clock: Clock) -> None:
    add(store, answer(), content=b"pass")
    done = prune(store, Retention(passes_days=0), person="eva", dry_run=True, clock_ns=clock)
    assert (done.files, done.left) == (1, 0)
    assert contents(store) == {b"pass"}
    assert store.many([2]) == []


def test_a_frame_that_comes_again_after_it_was_pruned_is_there_again(store: Store, clock: Clock) -> None:
    add(store, answer(), content=b"black")
    prune(store, Retention(passes_days=0), person="eva", clock_ns=clock)
    add(store, answer(), content=b"black")
    assert contents(store) == {b"black"}
    assert verify(store).intact


def test_a_frame_that_comes_again_while_it_is_pruned_stays(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the record of the removal and the removal, a server finds the file and does not write it anew."""
    add(store, answer(), content=b"black")
    remove, other = store.files.remove, Store.open(store.place, clock_ns=clock)
    from serving.audit import prune as module

    writing, turns = module.writing, iter([lambda: None, lambda: add(other, answer(), content=b"black")])

    def between(engine: object) -> object:
        next(turns, lambda: None)()
        return writing(engine)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "writing", between)
    prune(store, Retention(passes_days=0), person="eva", clock_ns=clock)
    other.close()
    assert remove is not None
    assert contents(store) == {b"black"}
    assert verify(store).intact


def test_what_a_crash_left_goes_after_an_hour(store: Store, clock: Clock) -> None:
    add(store, answer(), content=b"recorded")
    for name, age_s in (("aa" + "0" * 62, 7200.0), ("bb" + "0" * 62, 10.0)):
        path = store.files.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name[:2].encode())
        os.utime(path, (time.time() - age_s,) * 2)
    done = prune(store, Retention(passes_days=1), person="eva", clock_ns=clock)
    assert done.orphans == 1
    assert contents(store) == {b"recorded", b"bb"}


def test_models_are_kept_for_ever_and_come_back_as_they_were(
    store: Store, clock: Clock, bundle: Path, tmp_path: Path
) -> None:
    assert keep_bundle(store, bundle, "server")
    assert not keep_bundle(store, bundle, "server")
    clock.now += 10_000 * DAY
    prune(store, Retention(passes_days=0, others_days=0, max_bytes=0), person="eva", clock_ns=clock)
    kept = store.get(1).record
    assert isinstance(kept, Action)
    restored = restore_bundle(store, kept.subject, tmp_path / "restored")
    names = {path.relative_to(bundle) for path in bundle.rglob("*") if path.is_file()}
    assert {path.relative_to(restored) for path in restored.rglob("*") if path.is_file()} == names
    assert all((bundle / name).read_bytes() == (restored / name).read_bytes() for name in names)
    with pytest.raises(AuditError, match="not in the store"):
        restore_bundle(store, "0" * 64, tmp_path / "other")


@pytest.mark.parametrize("options", [{}, {"passes_days": -1}, {"others_days": 5}, {"passes_days": 9, "others_days": 5}])
def test_retention_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        Retention(**options)  # type: ignore[arg-type]
