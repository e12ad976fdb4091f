"""Indexes of what is looked for, and of nothing else: most rows of these tables are written once and never sought."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_CONTRIBUTORS = sa.text("substr(account, 1, 12) = 'contributor:'")
_PENDING = sa.text("status = 'pending'")


def upgrade() -> None:
    for name, columns in (
        ("posting_by_account", ["account", "log_index", "position"]),
        ("posting_by_period", ["account", "period", "log_index", "position"]),
    ):
        op.drop_index(name, "posting")
        op.create_index(name, "posting", columns, sqlite_where=_CONTRIBUTORS, postgresql_where=_CONTRIBUTORS)
    op.drop_index("intent_by_age", "intent")
    op.drop_index("answer_by_status", "answer")
    op.create_index("answer_pending", "answer", ["created_at"], sqlite_where=_PENDING, postgresql_where=_PENDING)
