"""A user may have an end, as a token may"""

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('users', sa.Column('expires_at', sa.Float(), nullable=True))


def downgrade() -> None:
    op.drop_column('users', 'expires_at')
