"""The chain, and what it is searched by."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
_SHA = sa.String(64)
_ADD_ONLY = ("records", "checkpoints")


def upgrade() -> None:
    _chain()
    _answers()
    _people()
    _files()
    for table in _ADD_ONLY:
        _forbid_changes(table)


def _seq(*constraints: sa.ForeignKey) -> sa.Column[int]:
    return sa.Column("seq", _SEQ, *constraints, primary_key=True, autoincrement=False)


def _names(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, _NAME, nullable=False) for name in names]


def _time() -> sa.Column[int]:
    return sa.Column("time_ns", sa.BigInteger(), nullable=False)


def _indexes(table: str, indexes: dict[str, list[str]]) -> None:
    for name, columns in indexes.items():
        op.create_index(f"{table}_{name}", table, columns)


def _chain() -> None:
    op.create_table(
        "about",
        sa.Column("store_id", sa.String(36), primary_key=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "records",
        _seq(),
        sa.Column("kind", sa.String(16), nullable=False),
        _time(),
        sa.Column("previous", sa.LargeBinary(32), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
    )
    op.create_table(
        "checkpoints",
        _seq(),
        sa.Column("statement", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
    )


def _answers() -> None:
    op.create_table(
        "answers",
        _seq(sa.ForeignKey("records.seq")),
        _time(),
        *_names("request_id", "part", "lot", "camera", "station"),
        sa.Column("verdict", sa.SmallInteger(), nullable=False),
        *_names("predicted"),
        sa.Column("anomaly_score", sa.Float(53)),
        sa.Column("error", sa.String(40), nullable=False),
        *_names("model", "model_version"),
        sa.Column("bundle_digest", _SHA, nullable=False),
        sa.Column("frame", _SHA, nullable=False),
        sa.Column("media", sa.String(40), nullable=False),
        sa.Column("maps", _SHA, nullable=False),
        sa.Column("total_ms", sa.Float(53)),
        sa.Column("sampled", sa.Boolean(), nullable=False),
    )
    indexes = {
        "time": ["time_ns", "seq"],
        "request": ["request_id", "seq"],
        "part": ["part", "seq"],
        "lot": ["lot", "seq"],
        "camera": ["camera", "seq"],
        "camera_verdict": ["camera", "verdict", "seq"],
        "verdict": ["verdict", "seq"],
        "predicted": ["predicted", "seq"],
        "model": ["model", "model_version", "seq"],
    }
    _indexes("answers", indexes)


def _people() -> None:
    op.create_table(
        "reviews",
        _seq(sa.ForeignKey("records.seq")),
        _time(),
        sa.Column("answer", _SEQ, sa.ForeignKey("answers.seq"), nullable=False),
        *_names("person"),
        sa.Column("verdict", sa.String(16), nullable=False),
        *_names("label"),
        sa.Column("blind", sa.Boolean(), nullable=False),
        sa.Column("disagreement", sa.String(16), nullable=False),
        sa.Column("supersedes", _SEQ, unique=True),
    )
    _indexes(
        "reviews",
        {"answer": ["answer", "seq"], "disagreement": ["disagreement", "answer"], "person": ["person", "seq"]},
    )
    op.create_table("actions", _seq(sa.ForeignKey("records.seq")), _time(), *_names("action", "person", "subject"))
    _indexes("actions", {"action": ["action", "seq"], "person": ["person", "seq"]})
    op.create_table(
        "worklist",
        sa.Column("answer", _SEQ, sa.ForeignKey("answers.seq"), primary_key=True, autoincrement=False),
        *_names("camera", "lot"),
        sa.Column("sampled", sa.Boolean(), nullable=False),
    )
    _indexes("worklist", {"order": ["sampled", "answer"], "camera": ["camera", "sampled", "answer"]})


def _files() -> None:
    op.create_table("pruned", sa.Column("sha256", _SHA, primary_key=True), _seq(sa.ForeignKey("records.seq")))
    op.create_table(
        "files",
        sa.Column("sha256", _SHA, primary_key=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("media", sa.String(40), nullable=False),
        _time(),
        sa.Column("kept_longer", sa.Boolean(), nullable=False),
    )
    _indexes("files", {"retention": ["kept_longer", "time_ns"]})


def _forbid_changes(table: str) -> None:
    """Against accidents; who means to tamper removes the trigger, and is found out by the chain."""
    words = f"{table} are added to and never changed or removed"
    if op.get_bind().dialect.name == "sqlite":
        for verb in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{words}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_add_only() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{words}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_add_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_add_only()"
    )
