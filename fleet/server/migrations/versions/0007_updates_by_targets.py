"""Bundles are TUF targets, no envelopes beside them; order keys that rotate; the block list"""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'blocked',
        sa.Column('subject', sa.String(130), primary_key=True),
        sa.Column('reason', sa.String(500), nullable=False),
        sa.Column('actor', sa.String(64), nullable=False),
        sa.Column('at', sa.Float(), nullable=False),
    )
    for name in ('bundles', 'alternates'):
        with op.batch_alter_table(name) as table:
            table.drop_column('envelope')
    with op.batch_alter_table('orders') as table:
        table.add_column(sa.Column('keyid', sa.String(16), nullable=False, server_default=''))


def downgrade() -> None:
    with op.batch_alter_table('orders') as table:
        table.drop_column('keyid')
    for name in ('bundles', 'alternates'):
        with op.batch_alter_table(name) as table:
            table.add_column(sa.Column('envelope', sa.LargeBinary(), nullable=False, server_default=''))
    op.drop_table('blocked')
