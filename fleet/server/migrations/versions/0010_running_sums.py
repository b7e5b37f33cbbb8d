"""Members as rows, running sums of stages and devices, no windows"""

import json
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = '0010'
down_revision = '0009'
branch_labels = None
depends_on = None

_MEMBER: tuple[sa.Column[Any], ...] = (
    sa.Column('rollout', sa.Integer(), sa.ForeignKey('rollouts.id'), primary_key=True),
    sa.Column('device', sa.String(64), primary_key=True),
    sa.Column('profile', sa.String(64), nullable=False),
    sa.Column('key', sa.String(64), nullable=False),
    sa.Column('target', sa.String(64), nullable=False),
    sa.Column('previous', sa.String(64)),
    sa.Column('previous_title', sa.String(200), nullable=False),
    sa.Column('is_held', sa.Boolean(), nullable=False),
    sa.Column('state', sa.String(20), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('stage', sa.Integer()),
    sa.Column('order_counter', sa.BigInteger(), nullable=False),
    sa.Column('ordered_at', sa.Float()),
    sa.Column('notified_at', sa.Float()),
    sa.Column('online_since', sa.Float()),
    sa.Column('seen_enrolment', sa.BigInteger(), nullable=False),
    sa.Column('seen_incarnation', sa.BigInteger(), nullable=False),
    sa.Column('seen_seq', sa.BigInteger(), nullable=False),
    sa.Column('refused_before', sa.Text(), nullable=False),
    sa.Column('is_excused', sa.Boolean(), nullable=False),
    sa.Column('is_leaving', sa.Boolean(), nullable=False),
    sa.Column('is_returning', sa.Boolean(), nullable=False),
)


def upgrade() -> None:
    members = op.create_table('members', *_MEMBER)
    op.create_index('ix_members_device', 'members', ['device'])
    op.create_table(
        'stage_sums',
        sa.Column('rollout', sa.Integer(), primary_key=True),
        sa.Column('stage', sa.Integer(), primary_key=True),
        sa.Column('device', sa.String(64), primary_key=True),
        sa.Column('judged_from', sa.Float(), nullable=False),
        sa.Column('sums', sa.Text(), nullable=False),
    )
    op.create_table(
        'changes',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('devices', sa.Text(), nullable=False),
    )
    with op.batch_alter_table('rollouts') as table:
        table.add_column(sa.Column('deployment', sa.String(64), nullable=False, server_default=''))
        table.add_column(sa.Column('stage', sa.Integer(), nullable=False, server_default='-1'))
        table.add_column(sa.Column('judged_from', sa.Float(), nullable=True))
        table.add_column(sa.Column('cold_windows', sa.Integer(), nullable=False, server_default='1'))
        table.add_column(sa.Column('revision', sa.BigInteger(), nullable=False, server_default='0'))
    with op.batch_alter_table('devices') as table:
        table.add_column(sa.Column('offline_at', sa.Float(), nullable=True))
        table.add_column(sa.Column('reported_counter', sa.BigInteger(), nullable=False, server_default='0'))
    with op.batch_alter_table('totals') as table:
        table.add_column(sa.Column('recent', sa.Text(), nullable=False, server_default='{}'))
    op.drop_table('windows')
    _members_to_rows(members)


def _members_to_rows(members: sa.Table) -> None:
    rollouts = sa.table('rollouts', *(sa.column(name) for name in ('id', 'deployment', 'stage', 'judged_from')))
    rollouts.append_column(sa.column('state', sa.LargeBinary()))
    connection = op.get_bind()
    for number, state in connection.execute(sa.select(rollouts.c.id, rollouts.c.state)).all():
        rollout = json.loads(state)
        rows = [_row(number, member) for member in rollout['members'].values()]
        rollout['members'] = {}
        if rows:
            connection.execute(sa.insert(members), rows)
        values = {
            'state': json.dumps(rollout).encode(), 'deployment': rollout['spec']['deployment'],
            'stage': rollout['stage'], 'judged_from': _seconds(rollout['judged_from']),
        }
        connection.execute(sa.update(rollouts).where(rollouts.c.id == number).values(**values))


def _row(rollout: int, member: dict[str, Any]) -> dict[str, Any]:
    enrolment, incarnation, seq = member.pop('seen')
    times = {name: _seconds(member.pop(name)) for name in ('ordered_at', 'notified_at', 'online_since')}
    seen = {'seen_enrolment': enrolment, 'seen_incarnation': incarnation, 'seen_seq': seq}
    return member | times | seen | {'rollout': rollout, 'is_leaving': member['is_returning']}


def _seconds(text: str | None) -> float | None:
    return datetime.fromisoformat(text).timestamp() if text else None


def downgrade() -> None:
    """Windows are gone, and what no state held before: gates of an open stage begin with no data."""
    _members_to_states()
    for name in ('changes', 'stage_sums', 'members'):
        op.drop_table(name)
    op.create_table(
        'windows',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('device', sa.String(64), nullable=False),
        sa.Column('deployment', sa.String(64), nullable=False),
        sa.Column('digest', sa.String(64), nullable=False),
        sa.Column('received_at', sa.Float(), nullable=False),
        sa.Column('length_s', sa.Float(), nullable=False),
        sa.Column('is_clock_ok', sa.Boolean(), nullable=False),
        sa.Column('requests', sa.BigInteger(), nullable=False),
        sa.Column('errors', sa.BigInteger(), nullable=False),
        sa.Column('rejected_inputs', sa.BigInteger(), nullable=False),
        sa.Column('worker_deaths', sa.BigInteger(), nullable=False),
        sa.Column('infer_ms', sa.Text(), nullable=False),
    )
    op.create_index('ix_windows_device', 'windows', ['device', 'deployment', 'received_at'])
    op.create_index('ix_windows_received', 'windows', ['received_at'])
    with op.batch_alter_table('totals') as table:
        table.drop_column('recent')
    with op.batch_alter_table('devices') as table:
        table.drop_column('offline_at')
        table.drop_column('reported_counter')
    with op.batch_alter_table('rollouts') as table:
        for name in ('deployment', 'stage', 'judged_from', 'cold_windows', 'revision'):
            table.drop_column(name)


def _members_to_states() -> None:
    connection = op.get_bind()
    rollouts = sa.table('rollouts', sa.column('id'), sa.column('state', sa.LargeBinary()))
    members = sa.table('members', *(sa.column(column.name) for column in _MEMBER))
    for number, state in connection.execute(sa.select(rollouts.c.id, rollouts.c.state)).all():
        rows = connection.execute(sa.select(members).where(members.c.rollout == number)).mappings()
        found = {row['device']: _member(dict(row)) for row in rows}
        values = {'state': json.dumps(json.loads(state) | {'members': found}).encode()}
        connection.execute(sa.update(rollouts).where(rollouts.c.id == number).values(**values))


def _member(row: dict[str, Any]) -> dict[str, Any]:
    seen = [row.pop(name) for name in ('seen_enrolment', 'seen_incarnation', 'seen_seq')]
    for name in ('ordered_at', 'notified_at', 'online_since'):
        if row[name] is not None:
            row[name] = datetime.fromtimestamp(row[name], UTC).isoformat()
    for name in ('is_held', 'is_excused', 'is_returning'):
        row[name] = bool(row[name])
    del row['rollout'], row['is_leaving']
    return row | {'seen': seen}
