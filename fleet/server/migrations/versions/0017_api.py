"""Answers by Idempotency-Key, and what changed for those who watch"""

import sqlalchemy as sa
from alembic import op

revision = '0017'
down_revision = '0016'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'repeats',
        sa.Column('name', sa.String(64), primary_key=True),
        sa.Column('request', sa.String(64), nullable=False),
        sa.Column('began_at', sa.Float(), nullable=False, index=True),
        sa.Column('sealed', sa.LargeBinary()),
    )
    op.create_table(
        'events',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('ids', sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )


def downgrade() -> None:
    op.drop_table('events')
    op.drop_table('repeats')
