"""Several deployments that move together in one rollout"""

import sqlalchemy as sa
from alembic import op

revision = '0019'
down_revision = '0018'
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ('rollouts', 'members'):
        op.add_column(table, sa.Column('beside', sa.Text(), nullable=False, server_default=''))


def downgrade() -> None:
    for table in ('rollouts', 'members'):
        op.drop_column(table, 'beside')
