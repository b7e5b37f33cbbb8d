"""What searches ask of devices, beside what they said of themselves"""

import msgspec
import sqlalchemy as sa
from alembic import op

from edgekit.wire.messages import Reported
from fleet.rules import facts

revision = '0018'
down_revision = '0017'
branch_labels = None
depends_on = None

_AT_ONCE = 1000


def upgrade() -> None:
    with op.batch_alter_table('devices') as table:
        table.add_column(sa.Column('facts', sa.Text(), nullable=False, server_default=''))
        table.add_column(sa.Column('trouble', sa.Text(), nullable=False, server_default=''))
        table.add_column(sa.Column('gravity', sa.Integer(), nullable=False, server_default='10'))
    devices = sa.table('devices', *(sa.column(name) for name in ('id', 'reported', 'facts', 'trouble', 'gravity')))
    connection = op.get_bind()
    names = list(connection.execute(sa.select(devices.c.id).where(devices.c.reported.is_not(None))).scalars())
    for at in range(0, len(names), _AT_ONCE):
        some = devices.c.id.in_(names[at : at + _AT_ONCE])
        for device, text in connection.execute(sa.select(devices.c.id, devices.c.reported).where(some)).all():
            try:
                said = msgspec.json.decode(text, type=Reported)
            except msgspec.DecodeError:
                # What an older version took and this one does not: it says everything again when it next connects.
                continue
            new = {'facts': facts.of(said), 'trouble': facts.trouble(said), 'gravity': facts.gravity(said)}
            connection.execute(sa.update(devices).where(devices.c.id == device).values(**new))


def downgrade() -> None:
    with op.batch_alter_table('devices') as table:
        table.drop_column('gravity')
        table.drop_column('trouble')
        table.drop_column('facts')
