"""Experiments and their units"""

import sqlalchemy as sa
from alembic import op

revision = '0014'
down_revision = '0013'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'experiments',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('status', sa.String(20), nullable=False, index=True),
        sa.Column('deployment', sa.String(64), nullable=False),
        sa.Column('name_a', sa.String(64), nullable=False),
        sa.Column('version_a', sa.String(64), nullable=False),
        sa.Column('name_b', sa.String(64), nullable=False),
        sa.Column('version_b', sa.String(64), nullable=False),
        sa.Column('selector', sa.String(500), nullable=False),
        sa.Column('share', sa.Float(), nullable=False),
        sa.Column('goal', sa.String(100), nullable=False),
        sa.Column('planned', sa.Integer(), nullable=False),
        sa.Column('reason', sa.Text(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('updated_at', sa.Float(), nullable=False),
    )
    op.create_table(
        'units',
        sa.Column('experiment', sa.Integer(), sa.ForeignKey('experiments.id'), primary_key=True),
        sa.Column('device', sa.String(64), primary_key=True, index=True),
        sa.Column('arm', sa.String(1), nullable=False),
        sa.Column('target', sa.String(64), nullable=False),
        sa.Column('previous', sa.String(64)),
        sa.Column('wanted', sa.String(64), nullable=False),
        sa.Column('is_due', sa.Boolean(), nullable=False, index=True),
        sa.Column('joined_at', sa.Float(), nullable=False),
        sa.Column('windows', sa.BigInteger(), nullable=False, server_default='0'),
        sa.Column('requests', sa.BigInteger(), nullable=False, server_default='0'),
        sa.Column('errors', sa.BigInteger(), nullable=False, server_default='0'),
        sa.Column('observed', sa.Float(), nullable=False, server_default='0'),
        sa.Column('total', sa.Float(), nullable=False, server_default='0'),
    )


def downgrade() -> None:
    op.drop_table('units')
    op.drop_table('experiments')
