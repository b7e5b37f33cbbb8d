"""Narrow indexes that filters and counts of devices go over instead of the tables"""

from alembic import op

revision = '0024'
down_revision = '0019'
branch_labels = None
depends_on = None

_SEARCHED = [
    'id', 'decommissioned_at', 'is_duplicate', 'enrolment', 'is_online', 'reported_counter', 'order_counter', 'profile',
    'labels', 'facts',
]


def upgrade() -> None:
    op.create_index('ix_desired_runs', 'desired', ['device', 'deployment', 'sha256'])
    if op.get_bind().dialect.name == 'sqlite':
        op.create_index('ix_devices_search', 'devices', _SEARCHED)


def downgrade() -> None:
    if op.get_bind().dialect.name == 'sqlite':
        op.drop_index('ix_devices_search', 'devices')
    op.drop_index('ix_desired_runs', 'desired')
