"""What devices' links have carried"""

import sqlalchemy as sa
from alembic import op

revision = '0023'
down_revision = '0022'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('devices') as batch:
        batch.add_column(sa.Column('traffic', sa.Text(), nullable=False, server_default=''))


def downgrade() -> None:
    with op.batch_alter_table('devices') as batch:
        batch.drop_column('traffic')
