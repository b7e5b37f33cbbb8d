"""Alternates beside a release's own bundles"""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'alternates',
        sa.Column('sha256', sa.String(64), primary_key=True),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('version', sa.String(64), nullable=False),
        sa.Column('profile', sa.String(64), nullable=False),
        sa.Column('recipe', sa.String(200), nullable=False),
        sa.Column('length', sa.BigInteger(), nullable=False),
        sa.Column('engine', sa.String(64), nullable=False),
        sa.Column('engine_versions', sa.String(200), nullable=False),
        sa.Column('envelope', sa.LargeBinary(), nullable=False),
        sa.Column('statement', sa.LargeBinary(), nullable=True),
        sa.Column('published_at', sa.Float(), nullable=False),
        sa.UniqueConstraint('name', 'version', 'profile', 'recipe'),
    )


def downgrade() -> None:
    op.drop_table('alternates')
