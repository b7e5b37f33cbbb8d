"""Alerts, whom they are told, drift; what devices report of their troubles"""

import json

import sqlalchemy as sa
from alembic import op

revision = '0016'
down_revision = '0015'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'alerts',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('kind', sa.String(32), nullable=False),
        sa.Column('subject', sa.String(300), nullable=False),
        sa.Column('topic', sa.String(64), nullable=False),
        sa.Column('severity', sa.String(16), nullable=False),
        sa.Column('words', sa.Text(), nullable=False),
        sa.Column('since', sa.Float(), nullable=False),
        sa.Column('found_at', sa.Float(), nullable=False),
        sa.Column('seen_at', sa.Float(), nullable=False),
        sa.Column('opened_at', sa.Float()),
        sa.Column('ended', sa.Float(), index=True),
        sa.Column('how_many', sa.Integer(), nullable=False),
        sa.Column('told', sa.Integer(), nullable=False),
        sa.Column('told_at', sa.Float()),
        sa.Column('few_at', sa.Float()),
        sa.Column('acknowledged_by', sa.String(100), nullable=False),
        sa.Column('acknowledged_at', sa.Float()),
        sa.Column('reached', sa.Text(), nullable=False),
        sa.Column('about', sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        'alert_targets',
        sa.Column('name', sa.String(64), primary_key=True),
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('shown', sa.String(500), nullable=False),
        sa.Column('sealed', sa.Text(), nullable=False),
        sa.Column('severity', sa.String(16), nullable=False),
        sa.Column('events', sa.Text(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(100), nullable=False),
        sa.Column('last_sent_at', sa.Float()),
        sa.Column('last_error', sa.String(300), nullable=False),
    )
    op.create_table(
        'messages',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('target', sa.String(64), sa.ForeignKey('alert_targets.name'), nullable=False, index=True),
        sa.Column('message', sa.String(40), nullable=False),
        sa.Column('body', sa.Text(), nullable=False),
        sa.Column('alerts', sa.Text(), nullable=False),
        sa.Column('state', sa.String(8), nullable=False),
        sa.Column('tries', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('due_at', sa.Float(), nullable=False),
        sa.Column('sent_at', sa.Float()),
        sa.Index('ix_messages_state', 'state', 'due_at'),
        sqlite_autoincrement=True,
    )
    op.create_table(
        'drift',
        sa.Column('device', sa.String(64), primary_key=True),
        sa.Column('deployment', sa.String(64), primary_key=True),
        sa.Column('digest', sa.String(64), primary_key=True),
        sa.Column('track', sa.Text(), nullable=False),
        sa.Column('blocks', sa.Integer(), nullable=False),
        sa.Column('seen_at', sa.Float(), nullable=False),
        sa.Column('chance', sa.Float()),
        sa.Column('level', sa.Float()),
        sa.Column('found_since', sa.Float()),
    )
    op.create_table(
        'drops',
        sa.Column('worker', sa.String(64), primary_key=True),
        sa.Column('reason', sa.String(100), primary_key=True),
        sa.Column('dropped', sa.BigInteger(), nullable=False),
    )
    op.add_column('devices', sa.Column('troubles', sa.Text(), nullable=False, server_default=''))
    op.create_index('ix_audit_subject', 'audit', ['subject'])
    _fill()


def _fill() -> None:
    """What devices said before is not said again until something changes."""
    devices = sa.table('devices', sa.column('id'), sa.column('reported'), sa.column('troubles'))
    connection = op.get_bind()
    rows = connection.execute(sa.select(devices.c.id, devices.c.reported).where(devices.c.reported.is_not(None)))
    for device, text in rows.all():
        found = [
            {'code': one['code'], 'detail': one['detail'][:200], 'deployment': one.get('deployment', ''), 'digest': ''}
            for one in json.loads(text).get('conditions', ())
        ]
        if found:
            connection.execute(
                devices.update().where(devices.c.id == device).values(troubles=json.dumps(found))
            )


def downgrade() -> None:
    op.drop_index('ix_audit_subject', 'audit')
    op.drop_column('devices', 'troubles')
    for name in ('drops', 'drift', 'messages', 'alert_targets', 'alerts'):
        op.drop_table(name)
