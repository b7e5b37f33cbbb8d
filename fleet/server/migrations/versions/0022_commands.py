"""Commands to devices with what came of them; bundles that are here only to be measured"""

import sqlalchemy as sa
from alembic import op

revision = '0022'
down_revision = '0021'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'commands',
        sa.Column('id', sa.String(16), primary_key=True),
        sa.Column('device', sa.String(64), sa.ForeignKey('devices.id'), nullable=False),
        sa.Column('enrolment', sa.Integer(), nullable=False),
        sa.Column('kind', sa.String(16), nullable=False),
        sa.Column('action', sa.Text(), nullable=False),
        sa.Column('envelope', sa.LargeBinary(), nullable=False),
        sa.Column('actor', sa.String(100), nullable=False),
        sa.Column('issued_at', sa.Float(), nullable=False),
        sa.Column('expires_at', sa.Float(), nullable=False),
        sa.Column('published_at', sa.Float(), nullable=True),
        sa.Column('state', sa.String(16), nullable=False),
        sa.Column('reason', sa.Text(), nullable=False),
        sa.Column('payload', sa.Text(), nullable=True),
        sa.Column('changed_at', sa.Float(), nullable=False),
    )
    op.create_index('ix_commands_device', 'commands', ['device', 'issued_at'])
    op.create_index('ix_commands_state', 'commands', ['state', 'issued_at'])
    op.create_table(
        'finalists',
        sa.Column('sha256', sa.String(64), primary_key=True),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('version', sa.String(64), nullable=False),
        sa.Column('profile', sa.String(64), nullable=False),
        sa.Column('recipe', sa.String(200), nullable=False),
        sa.Column('length', sa.BigInteger(), nullable=False),
        sa.Column('published_at', sa.Float(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table('finalists')
    op.drop_index('ix_commands_state', 'commands')
    op.drop_index('ix_commands_device', 'commands')
    op.drop_table('commands')
