"""The audit trail: every answer of a server and every act of a person, in a chain that shows whether it was changed.

::

    with Store.open("audit") as store:                          # or postgresql://...; see AuditPlace
        page = search(store, Search(camera="left", verdict=Verdict.REJECT))
        store.append([Review(answer=page.answers[0].seq, person="eva", verdict=PersonVerdict.GOOD)])

Records are only ever added. ``records`` says what there is, ``schema`` how it lies in tables, ``chain`` how it is
digested; `docs/audit.md` says what that proves.
"""

from serving.audit.accounts import (
    Account,
    Role,
    account,
    account_of,
    accounts,
    add_account,
    change_account,
    sign_in,
    sign_out,
    signed_in,
)
from serving.audit.append import Blob
from serving.audit.counts import Reviewed, Sampled, Span, Tally, by_camera, by_class, reviewed, sampled
from serving.audit.maps import read_sheet
from serving.audit.opinions import Opinion, Opinions, head, last_standing_review, opinions, standing_answers
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
from serving.audit.worklist import Waiting, next_for_review, still_waiting, waiting

__all__ = [
    "Account",
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
    "Opinion",
    "Opinions",
    "Page",
    "PersonVerdict",
    "Prune",
    "RawLayout",
    "Record",
    "RegionFigures",
    "Review",
    "ReviewRow",
    "Reviewed",
    "Role",
    "Sampled",
    "Search",
    "Span",
    "Store",
    "Stored",
    "Tally",
    "Waiting",
    "account",
    "account_of",
    "accounts",
    "actions",
    "add_account",
    "by_camera",
    "by_class",
    "change_account",
    "choices",
    "head",
    "last_standing_review",
    "latest_by_camera",
    "next_for_review",
    "opinions",
    "part_history",
    "read_sheet",
    "reviewed",
    "reviews_of",
    "sampled",
    "search",
    "sign_in",
    "sign_out",
    "signed_in",
    "standing_answers",
    "still_waiting",
    "waiting",
]
