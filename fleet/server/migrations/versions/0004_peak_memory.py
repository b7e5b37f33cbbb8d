"""What a process takes at most with a bundle"""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('bundles') as table:
        table.add_column(sa.Column('peak_memory_mb', sa.Float(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('bundles') as table:
        table.drop_column('peak_memory_mb')
