"""Narrow indexes that filters and counts of devices go over instead of the tables; what bundles were judged on; what was
known of an experiment over time"""

import sqlalchemy as sa
from alembic import op

revision = '0020'
down_revision = '0019'
branch_labels = None
depends_on = None

_SEARCHED = [
    'id', 'decommissioned_at', 'is_duplicate', 'enrolment', 'is_online', 'reported_counter', 'order_counter', 'profile',
    'labels', 'facts',
]


def upgrade() -> None:
    op.create_table(
        'drift_references',
        sa.Column('sha256', sa.String(64), sa.ForeignKey('bundles.sha256'), primary_key=True),
        sa.Column('reference', sa.LargeBinary(), nullable=False),
    )
    op.create_table(
        'experiment_points',
        sa.Column('experiment', sa.Integer(), sa.ForeignKey('experiments.id'), primary_key=True),
        sa.Column('at', sa.Float(), primary_key=True),
        sa.Column('difference', sa.Float(), nullable=False),
        sa.Column('low', sa.Float(), nullable=False),
        sa.Column('high', sa.Float(), nullable=False),
        sa.Column('devices', sa.Integer(), nullable=False),
    )
    op.create_index('ix_desired_runs', 'desired', ['device', 'deployment', 'sha256'])
    if op.get_bind().dialect.name == 'sqlite':
        op.create_index('ix_devices_search', 'devices', _SEARCHED)


def downgrade() -> None:
    if op.get_bind().dialect.name == 'sqlite':
        op.drop_index('ix_devices_search', 'devices')
    op.drop_index('ix_desired_runs', 'desired')
    op.drop_table('experiment_points')
    op.drop_table('drift_references')
