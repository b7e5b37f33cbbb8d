"""Workers that take reports in"""

import sqlalchemy as sa
from alembic import op

revision = '0013'
down_revision = '0012'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'workers',
        sa.Column('name', sa.String(64), primary_key=True),
        sa.Column('host', sa.String(255), nullable=False),
        sa.Column('seen_at', sa.Float(), nullable=False),
        sa.Column('is_hearing', sa.Boolean(), nullable=False),
        sa.Column('stored', sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table('workers')
