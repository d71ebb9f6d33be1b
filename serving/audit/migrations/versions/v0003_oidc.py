"""Accounts that belong to a person of an OpenID provider."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("issuer", "subject"):
        column = sa.Column(name, sa.String(255), nullable=False, server_default="")
        op.add_column("accounts", column)
    op.create_index("accounts_subject", "accounts", ["issuer", "subject"])
