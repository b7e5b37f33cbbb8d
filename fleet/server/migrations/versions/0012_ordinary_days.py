"""Devices that are deleted, replaced or moved to another group"""

import sqlalchemy as sa
from alembic import op

revision = '0012'
down_revision = '0011'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('devices') as table:
        table.add_column(sa.Column('deleted_at', sa.Float(), nullable=True))
        table.add_column(sa.Column('former_enrolment', sa.Integer(), nullable=False, server_default='0'))
        table.add_column(sa.Column('former_at', sa.Float(), nullable=True))
    with op.batch_alter_table('assignments') as table:
        table.add_column(sa.Column('probation_s', sa.Float(), nullable=True))
    op.create_table(
        'to_place',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('device', sa.String(64), sa.ForeignKey('devices.id'), nullable=False),
        sa.Column('deployment', sa.String(64), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index('ix_to_place_device', 'to_place', ['device'])


def downgrade() -> None:
    op.drop_table('to_place')
    with op.batch_alter_table('assignments') as table:
        table.drop_column('probation_s')
    with op.batch_alter_table('devices') as table:
        for name in ('former_at', 'former_enrolment', 'deleted_at'):
            table.drop_column(name)
