"""The tables. ``records`` is the audit trail; the others are made of it, so that it can be searched.

================  ====================================================================================================
``about``         one row: what this store is called, and since when it exists
``records``       the chain: every record as it was digested. Rows are added, and never changed or removed
``checkpoints``   signed statements "record ``seq`` has the digest ...", likewise
``answers``       one row for each answer: what people search by
``reviews``       one row for each review; ``supersedes`` is the review of the same answer before it
``actions``       one row for each action
``pruned``        which files a prune removed
``worklist``      answers that wait for a person; a row goes when a review comes
``files``         what lies in the folder of files now, and how long it is to be kept
``accounts``      who may use the inspector's page, and in which role; every change is recorded as an action
``sessions``      who is signed in there
================  ====================================================================================================

``defectlens audit verify`` compares ``answers``, ``reviews``, ``actions`` and ``pruned`` with the records they were
made of: whoever changes what is searched is found out too.

Every index that a search can use ends with ``seq``, which is also the order of time (`docs/decisions/0022`).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

metadata = MetaData()
# SQLite numbers rows by itself only where the type is exactly INTEGER.
_SEQ = BigInteger().with_variant(Integer(), "sqlite")
# Compared byte by byte everywhere, so that beginnings can be searched for with an index.
_NAME = String().with_variant(String(collation="C"), "postgresql")
_SHA = String(64)


def _seq() -> Column[int]:
    return Column("seq", _SEQ, ForeignKey("records.seq"), primary_key=True, autoincrement=False)


about = Table(
    "about",
    metadata,
    Column("store_id", String(36), primary_key=True),
    Column("created_ns", BigInteger, nullable=False),
)

records = Table(
    "records",
    metadata,
    Column("seq", _SEQ, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("time_ns", BigInteger, nullable=False),
    Column("previous", LargeBinary(32), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("body", Text, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("seq", _SEQ, primary_key=True, autoincrement=False),
    Column("statement", Text, nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
    Column("key", String(64), nullable=False),
)

answers = Table(
    "answers",
    metadata,
    _seq(),
    Column("time_ns", BigInteger, nullable=False),
    Column("request_id", _NAME, nullable=False),
    Column("part", _NAME, nullable=False),
    Column("lot", _NAME, nullable=False),
    Column("camera", _NAME, nullable=False),
    Column("station", _NAME, nullable=False),
    Column("verdict", SmallInteger, nullable=False),
    Column("predicted", _NAME, nullable=False),
    Column("anomaly_score", Float(53)),
    Column("error", String(40), nullable=False),
    Column("model", _NAME, nullable=False),
    Column("model_version", _NAME, nullable=False),
    Column("bundle_digest", String(64), nullable=False),
    Column("frame", _SHA, nullable=False),
    Column("media", String(40), nullable=False),
    Column("maps", _SHA, nullable=False),
    Column("total_ms", Float(53)),
    Column("sampled", Boolean, nullable=False),
    Index("answers_time", "time_ns", "seq"),
    Index("answers_request", "request_id", "seq"),
    Index("answers_part", "part", "seq"),
    Index("answers_lot", "lot", "seq"),
    Index("answers_camera", "camera", "seq"),
    # Counters are read from this index alone.
    Index("answers_camera_verdict", "camera", "verdict", "seq"),
    Index("answers_verdict", "verdict", "seq"),
    Index("answers_predicted", "predicted", "seq"),
    Index("answers_model", "model", "model_version", "seq"),
)

reviews = Table(
    "reviews",
    metadata,
    _seq(),
    Column("time_ns", BigInteger, nullable=False),
    Column("answer", _SEQ, ForeignKey("answers.seq"), nullable=False),
    Column("person", _NAME, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("label", _NAME, nullable=False),
    Column("blind", Boolean, nullable=False),
    Column("disagreement", String(16), nullable=False),
    Column("supersedes", _SEQ, unique=True),
    Index("reviews_answer", "answer", "seq"),
    Index("reviews_disagreement", "disagreement", "answer"),
    Index("reviews_person", "person", "seq"),
)

actions = Table(
    "actions",
    metadata,
    _seq(),
    Column("time_ns", BigInteger, nullable=False),
    Column("action", _NAME, nullable=False),
    Column("person", _NAME, nullable=False),
    Column("subject", _NAME, nullable=False),
    Index("actions_action", "action", "seq"),
    Index("actions_person", "person", "seq"),
)

pruned = Table(
    "pruned",
    metadata,
    Column("sha256", _SHA, primary_key=True),
    Column("seq", _SEQ, ForeignKey("records.seq"), primary_key=True, autoincrement=False),
)

worklist = Table(
    "worklist",
    metadata,
    Column("answer", _SEQ, ForeignKey("answers.seq"), primary_key=True, autoincrement=False),
    Column("camera", _NAME, nullable=False),
    Column("lot", _NAME, nullable=False),
    # A passed part that is to be checked, mixed in between the rejects and reviews.
    Column("sampled", Boolean, nullable=False),
    Index("worklist_order", "sampled", "answer"),
    Index("worklist_camera", "camera", "sampled", "answer"),
)

files = Table(
    "files",
    metadata,
    Column("sha256", _SHA, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("media", String(40), nullable=False),
    # Of the newest record that names it.
    Column("time_ns", BigInteger, nullable=False),
    # Some record that names it is no plain pass.
    Column("kept_longer", Boolean, nullable=False),
    Index("files_retention", "kept_longer", "time_ns"),
)

accounts = Table(
    "accounts",
    metadata,
    Column("name", _NAME, primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password", String(200), nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    # Of an OpenID provider's person; empty for those who have a password.
    Column("issuer", String(255), nullable=False, server_default=""),
    Column("subject", String(255), nullable=False, server_default=""),
    Index("accounts_subject", "issuer", "subject"),
)

sessions = Table(
    "sessions",
    metadata,
    # SHA-256 of what the browser holds: whoever reads the database cannot sign in with it.
    Column("token", _SHA, primary_key=True),
    Column("name", _NAME, ForeignKey("accounts.name"), nullable=False),
    Column("created_ns", BigInteger, nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
    Index("sessions_name", "name"),
)
