"""Users, machine tokens with roles, sessions; the audit log says before, after and from where, and has signed heads"""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'access_tokens',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('hash', sa.String(64), nullable=False, unique=True),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('role', sa.String(16), nullable=False),
        sa.Column('scope', sa.String(200), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(100), nullable=False),
        sa.Column('expires_at', sa.Float(), nullable=True),
        sa.Column('revoked_at', sa.Float(), nullable=True),
        sa.Column('last_used_at', sa.Float(), nullable=True),
        sa.Column('last_used_from', sa.String(64), nullable=False),
    )
    # The tokens that there were go on as what they were: admin's.
    op.execute(
        "INSERT INTO access_tokens (hash, name, role, scope, created_at, created_by, last_used_from) "
        "SELECT hash, name, 'admin', '', created_at, 'fleet', '' FROM tokens"
    )
    op.drop_table('tokens')
    op.create_table(
        'users',
        sa.Column('name', sa.String(64), primary_key=True),
        sa.Column('password', sa.String(200), nullable=False),
        sa.Column('role', sa.String(16), nullable=False),
        sa.Column('scope', sa.String(200), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(100), nullable=False),
        sa.Column('last_used_at', sa.Float(), nullable=True),
        sa.Column('last_used_from', sa.String(64), nullable=False),
    )
    op.create_table(
        'sessions',
        sa.Column('hash', sa.String(64), primary_key=True),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('expires_at', sa.Float(), nullable=False),
        sa.Column('last_used_at', sa.Float(), nullable=False),
    )
    op.create_index('ix_sessions_name', 'sessions', ['name'])
    op.create_table(
        'audit_heads',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('entry', sa.Integer(), nullable=False),
        sa.Column('hash', sa.String(64), nullable=False),
        sa.Column('count', sa.Integer(), nullable=False),
        sa.Column('at', sa.Float(), nullable=False),
        sa.Column('envelope', sa.LargeBinary(), nullable=False),
    )
    with op.batch_alter_table('audit') as table:
        table.alter_column('actor', existing_type=sa.String(64), type_=sa.String(100), existing_nullable=False)
        table.add_column(sa.Column('before', sa.Text(), nullable=False, server_default=''))
        table.add_column(sa.Column('after', sa.Text(), nullable=False, server_default=''))
        table.add_column(sa.Column('origin', sa.String(64), nullable=False, server_default=''))


def downgrade() -> None:
    with op.batch_alter_table('audit') as table:
        for column in ('origin', 'after', 'before'):
            table.drop_column(column)
        table.alter_column('actor', existing_type=sa.String(100), type_=sa.String(64), existing_nullable=False)
    op.drop_table('audit_heads')
    op.drop_table('sessions')
    op.drop_table('users')
    op.create_table(
        'tokens',
        sa.Column('hash', sa.String(64), primary_key=True),
        sa.Column('name', sa.String(64), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
    )
    # Only what may do everything could be said before.
    op.execute(
        "INSERT INTO tokens (hash, name, created_at) SELECT hash, name, created_at FROM access_tokens "
        "WHERE role = 'admin' AND scope = '' AND revoked_at IS NULL AND expires_at IS NULL"
    )
    op.drop_table('access_tokens')
