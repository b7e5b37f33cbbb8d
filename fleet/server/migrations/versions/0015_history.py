"""History by minutes, hours and days"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = '0015'
down_revision = '0014'
branch_labels = None
depends_on = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), 'sqlite')


def _table(name: str, keys: tuple[sa.Column[Any], ...], by: tuple[str, ...]) -> None:
    op.create_table(
        name,
        sa.Column('id', _NUMBER, primary_key=True),
        *keys,
        sa.Column('level', sa.SmallInteger(), nullable=False),
        sa.Column('at', sa.Float(), nullable=False),
        sa.Column('sums', sa.LargeBinary(), nullable=False),
    )
    op.create_index(f'ix_{name}_of', name, [*by, 'at'])
    op.create_index(f'ix_{name}_level', name, ['level', 'at'])


def upgrade() -> None:
    bundle = ('deployment', 'digest')
    _table(
        'arm_history',
        (
            sa.Column('rollout', sa.Integer(), nullable=False),
            sa.Column('stage', sa.Integer(), nullable=False),
            sa.Column('arm', sa.String(8), nullable=False),
        ),
        ('rollout',),
    )
    _table('release_history', tuple(sa.Column(name, sa.String(64), nullable=False) for name in bundle), bundle[::-1])
    columns = tuple(sa.Column(name, sa.String(64), nullable=False) for name in ('device', *bundle))
    _table('device_history', columns, ('device',))
    with op.batch_alter_table('totals') as table:
        table.add_column(sa.Column('gauges', sa.Text(), nullable=False, server_default='[]'))


def downgrade() -> None:
    with op.batch_alter_table('totals') as table:
        table.drop_column('gauges')
    for name in ('device_history', 'release_history', 'arm_history'):
        op.drop_table(name)
