"""The format of a bundle's manifest, which an agent must read"""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('bundles') as table:
        table.add_column(sa.Column('format', sa.Integer(), nullable=False, server_default='1'))


def downgrade() -> None:
    with op.batch_alter_table('bundles') as table:
        table.drop_column('format')
