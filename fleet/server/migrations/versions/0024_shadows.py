"""Shadows: releases that devices compare with what they serve"""

import sqlalchemy as sa
from alembic import op

revision = '0024'
down_revision = '0023'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'shadows',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('status', sa.String(20), nullable=False),
        sa.Column('deployment', sa.String(64), nullable=False),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('version', sa.String(64), nullable=False),
        sa.Column('selector', sa.String(500), nullable=False),
        sa.Column('share', sa.Float(), nullable=False),
        sa.Column('reason', sa.Text(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(100), nullable=False),
    )
    op.create_index('ix_shadows_status', 'shadows', ['status'])
    op.create_table(
        'shadow_devices',
        sa.Column('shadow', sa.Integer(), sa.ForeignKey('shadows.id'), primary_key=True),
        sa.Column('device', sa.String(64), primary_key=True),
        sa.Column('sha256', sa.String(64), nullable=False),
        sa.Column('is_due', sa.Boolean(), nullable=False),
        sa.Column('compared', sa.BigInteger(), nullable=False),
        sa.Column('dropped', sa.BigInteger(), nullable=False),
        sa.Column('failed', sa.BigInteger(), nullable=False),
        sa.Column('sums', sa.Text(), nullable=False),
    )
    op.create_index('ix_shadow_devices_device', 'shadow_devices', ['device'])
    op.create_index('ix_shadow_devices_is_due', 'shadow_devices', ['is_due'])


def downgrade() -> None:
    op.drop_table('shadow_devices')
    op.drop_table('shadows')
