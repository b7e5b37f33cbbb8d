"""Samples that devices bring, and what was asked of whom"""

import sqlalchemy as sa
from alembic import op

revision = '0021'
down_revision = '0020'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'collections',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('deployment', sa.String(64), nullable=False),
        sa.Column('selector', sa.String(500), nullable=False),
        sa.Column('reasons', sa.Text(), nullable=False),
        sa.Column('most', sa.Integer(), nullable=False),
        sa.Column('per_device', sa.Integer(), nullable=False),
        sa.Column('bytes_a_day', sa.BigInteger(), nullable=False),
        sa.Column('until_at', sa.Float(), nullable=False),
        sa.Column('ended', sa.String(20), nullable=False),
        sa.Column('is_due', sa.Boolean(), nullable=False),
        sa.Column('taken', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(100), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index('ix_collections_until_at', 'collections', ['until_at'])
    op.create_index('ix_collections_is_due', 'collections', ['is_due'])
    op.create_table(
        'collection_devices',
        sa.Column('collection', sa.Integer(), sa.ForeignKey('collections.id'), primary_key=True),
        sa.Column('device', sa.String(64), primary_key=True),
        sa.Column('taken', sa.Integer(), nullable=False),
        sa.Column('is_due', sa.Boolean(), nullable=False),
    )
    op.create_index('ix_collection_devices_device', 'collection_devices', ['device'])
    op.create_index('ix_collection_devices_is_due', 'collection_devices', ['is_due'])
    op.create_table(
        'samples',
        sa.Column('sha256', sa.String(64), primary_key=True),
        sa.Column('collection', sa.Integer(), sa.ForeignKey('collections.id'), nullable=False),
        sa.Column('device', sa.String(64), nullable=False),
        sa.Column('deployment', sa.String(64), nullable=False),
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('reason', sa.String(20), nullable=False),
        sa.Column('kind', sa.String(20), nullable=False),
        sa.Column('confidence', sa.Float()),
        sa.Column('label', sa.String(200), nullable=False),
        sa.Column('taken_at', sa.Float(), nullable=False),
        sa.Column('received_at', sa.Float(), nullable=False),
        sa.Column('length', sa.Integer(), nullable=False),
    )
    op.create_index('ix_samples_device', 'samples', ['device'])
    op.create_index('ix_samples_received_at', 'samples', ['received_at'])
    op.create_index('ix_samples_of', 'samples', ['collection', 'received_at', 'sha256'])


def downgrade() -> None:
    op.drop_table('samples')
    op.drop_table('collection_devices')
    op.drop_table('collections')
