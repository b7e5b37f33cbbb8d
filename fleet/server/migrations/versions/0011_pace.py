"""Where a member stands and by which clock, and what an operator asked for as it was written"""

import sqlalchemy as sa
from alembic import op

revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('members') as table:
        table.add_column(sa.Column('site', sa.String(64), nullable=False, server_default=''))
        table.add_column(sa.Column('zone', sa.String(64), nullable=False, server_default=''))
    with op.batch_alter_table('rollouts') as table:
        table.add_column(sa.Column('wanted', sa.Text(), nullable=False, server_default=''))


def downgrade() -> None:
    """A rollout that waits in the queue, or for approval of its first stage, is one that an older service cannot know."""
    op.execute("UPDATE rollouts SET status = 'aborted' WHERE status = 'queued'")
    with op.batch_alter_table('rollouts') as table:
        table.drop_column('wanted')
    with op.batch_alter_table('members') as table:
        table.drop_column('zone')
        table.drop_column('site')
