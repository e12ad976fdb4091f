"""How a key shares the gateway: its priority, and how many of its requests are answered at once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("api_key", sa.Column("priority", sa.String(length=8), nullable=False, server_default="normal"))
    op.add_column("api_key", sa.Column("concurrency", sa.Integer(), nullable=True))
