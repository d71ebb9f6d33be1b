"""The audit trail: every answer of a server and every act of a person, in a chain that shows whether it was changed.

::

    with Store.open("audit") as store:                          # or postgresql://...; see AuditPlace
        page = search(store, Search(camera="left", verdict=Verdict.REJECT))
        store.append([Review(answer=page.answers[0].seq, person="eva", verdict=PersonVerdict.GOOD)])

Records are only ever added. ``records`` says what there is, ``schema`` how it lies in tables, ``chain`` how it is
digested; `docs/audit.md` says what that proves.
"""

from serving.audit.append import Blob
from serving.audit.counts import Reviewed, Sampled, Span, Tally, by_camera, by_class, reviewed, sampled
from serving.audit.place import AuditPlace
from serving.audit.records import (
    Action,
    Answer,
    ClassFigures,
    Disagreement,
    DrawnRegion,
    FileRef,
    Kind,
    MapPlane,
    ModelUsed,
    PersonVerdict,
    Prune,
    RawLayout,
    Record,
    RegionFigures,
    Review,
)
from serving.audit.search import (
    AnswerRow,
    Page,
    ReviewRow,
    Search,
    actions,
    choices,
    latest_by_camera,
    part_history,
    reviews_of,
    search,
)
from serving.audit.store import Store, Stored
from serving.audit.worklist import Waiting, next_for_review, waiting

__all__ = [
    "Action",
    "Answer",
    "AnswerRow",
    "AuditPlace",
    "Blob",
    "ClassFigures",
    "Disagreement",
    "DrawnRegion",
    "FileRef",
    "Kind",
    "MapPlane",
    "ModelUsed",
    "Page",
    "PersonVerdict",
    "Prune",
    "RawLayout",
    "Record",
    "RegionFigures",
    "Review",
    "ReviewRow",
    "Reviewed",
    "Sampled",
    "Search",
    "Span",
    "Store",
    "Stored",
    "Tally",
    "Waiting",
    "actions",
    "by_camera",
    "by_class",
    "choices",
    "latest_by_camera",
    "next_for_review",
    "part_history",
    "reviewed",
    "reviews_of",
    "sampled",
    "search",
    "waiting",
]
