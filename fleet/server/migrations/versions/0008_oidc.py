"""People whom an OpenID provider vouches for, people who are blocked, sign-ins at a terminal"""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table('users') as table:
        table.add_column(sa.Column('subject', sa.String(460), nullable=True))
        table.add_column(sa.Column('blocked_at', sa.Float(), nullable=True))
        table.create_unique_constraint('uq_users_subject', ['subject'])
    with op.batch_alter_table('sessions') as table:
        table.add_column(sa.Column('kind', sa.String(8), nullable=False, server_default='page'))


def downgrade() -> None:
    with op.batch_alter_table('sessions') as table:
        table.drop_column('kind')
    # Who has no password cannot sign in without a provider.
    op.execute("DELETE FROM sessions WHERE name IN (SELECT name FROM users WHERE subject IS NOT NULL)")
    op.execute("DELETE FROM users WHERE subject IS NOT NULL")
    with op.batch_alter_table('users') as table:
        table.drop_constraint('uq_users_subject', type_='unique')
        table.drop_column('blocked_at')
        table.drop_column('subject')
