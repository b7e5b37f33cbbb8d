"""Enrolment by certificate: tokens of their own, batches, what the authority issued"""

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        'enrolment_tokens',
        sa.Column('id', sa.Integer(), primary_key=True),
        sa.Column('hash', sa.String(64), nullable=False, unique=True),
        sa.Column('device', sa.String(64), nullable=False),
        sa.Column('labels', sa.Text(), nullable=False),
        sa.Column('deployments', sa.Text(), nullable=False),
        sa.Column('serials', sa.Text(), nullable=False),
        sa.Column('needs_approval', sa.Boolean(), nullable=False),
        sa.Column('max_uses', sa.Integer(), nullable=False),
        sa.Column('created_at', sa.Float(), nullable=False),
        sa.Column('created_by', sa.String(64), nullable=False),
        sa.Column('expires_at', sa.Float(), nullable=False),
        sa.Column('revoked_at', sa.Float(), nullable=True),
    )
    op.create_index('ix_enrolment_tokens_device', 'enrolment_tokens', ['device'])
    op.create_table(
        'enrolment_uses',
        sa.Column('token', sa.Integer(), sa.ForeignKey('enrolment_tokens.id'), primary_key=True),
        sa.Column('device', sa.String(64), primary_key=True),
        sa.Column('public_key', sa.String(64), nullable=False),
        sa.Column('state', sa.String(16), nullable=False),
        sa.Column('profile', sa.String(64), nullable=False),
        sa.Column('first_at', sa.Float(), nullable=False),
        sa.Column('enrolment', sa.Integer(), nullable=False),
    )
    op.create_index('ix_enrolment_uses_state', 'enrolment_uses', ['state'])
    op.create_table(
        'certificates',
        sa.Column('serial', sa.String(32), primary_key=True),
        sa.Column('device', sa.String(64), sa.ForeignKey('devices.id'), nullable=False),
        sa.Column('enrolment', sa.Integer(), nullable=False),
        sa.Column('public_key', sa.String(64), nullable=False),
        sa.Column('issued_at', sa.Float(), nullable=False),
        sa.Column('not_after', sa.Float(), nullable=False),
        sa.Column('pem', sa.Text(), nullable=False),
        sa.Column('revoked_at', sa.Float(), nullable=True),
        sa.Column('reason', sa.String(64), nullable=False),
    )
    op.create_index('ix_certificates_device', 'certificates', ['device'])
    # A device that enrolled before there were certificates has none: it enrols again, with a new file.
    op.drop_index('ix_devices_token_hash', 'devices')
    with op.batch_alter_table('devices') as table:
        table.drop_column('token_hash')
        table.drop_column('is_token_used')
        table.drop_column('public_key')
        table.add_column(sa.Column('enrolled_for', sa.Text(), nullable=False, server_default='[]'))
        table.add_column(sa.Column('is_confirmed', sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column('fingerprint', sa.String(64), nullable=False, server_default=''))
        table.add_column(sa.Column('decommissioned_at', sa.Float(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('devices') as table:
        for column in ('decommissioned_at', 'fingerprint', 'is_confirmed', 'enrolled_for'):
            table.drop_column(column)
        table.add_column(sa.Column('public_key', sa.String(64), nullable=True))
        table.add_column(sa.Column('is_token_used', sa.Boolean(), nullable=False, server_default=sa.true()))
        table.add_column(sa.Column('token_hash', sa.String(64), nullable=False, server_default=''))
    op.create_index('ix_devices_token_hash', 'devices', ['token_hash'])
    op.drop_table('certificates')
    op.drop_table('enrolment_uses')
    op.drop_table('enrolment_tokens')
