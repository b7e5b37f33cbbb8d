CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE assignments (
	id INTEGER NOT NULL, 
	deployment VARCHAR(64) NOT NULL, 
	selector VARCHAR(500) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	version VARCHAR(64) NOT NULL, 
	rollout INTEGER NOT NULL, 
	set_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE audit (
	id INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	actor VARCHAR(64) NOT NULL, 
	action VARCHAR(64) NOT NULL, 
	subject VARCHAR(200) NOT NULL, 
	detail TEXT NOT NULL, 
	previous VARCHAR(64) NOT NULL, 
	hash VARCHAR(64) NOT NULL, 
	PRIMARY KEY (id)
);
CREATE TABLE bundles (
	sha256 VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	version VARCHAR(64) NOT NULL, 
	profile VARCHAR(64) NOT NULL, 
	length BIGINT NOT NULL, 
	engine VARCHAR(64) NOT NULL, 
	engine_versions VARCHAR(200) NOT NULL, 
	envelope BLOB NOT NULL, 
	published_at FLOAT NOT NULL, 
	PRIMARY KEY (sha256), 
	UNIQUE (name, version, profile)
);
CREATE TABLE devices (
	id VARCHAR(64) NOT NULL, 
	labels TEXT NOT NULL, 
	deployments TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	token_hash VARCHAR(64) NOT NULL, 
	is_token_used BOOLEAN NOT NULL, 
	enrolment INTEGER NOT NULL, 
	enrolled_at FLOAT, 
	credential_hash VARCHAR(64), 
	public_key VARCHAR(64), 
	profile VARCHAR(64) NOT NULL, 
	agent_version VARCHAR(200) NOT NULL, 
	is_online BOOLEAN NOT NULL, 
	is_duplicate BOOLEAN NOT NULL, 
	incarnation BIGINT NOT NULL, 
	nonce VARCHAR(16) NOT NULL, 
	reported_seq BIGINT NOT NULL, 
	reported TEXT, 
	last_seen_at FLOAT, 
	last_report_at FLOAT, 
	window_s FLOAT, 
	order_counter BIGINT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_devices_credential_hash ON devices (credential_hash);
CREATE INDEX ix_devices_token_hash ON devices (token_hash);
CREATE TABLE releases (
	name VARCHAR(64) NOT NULL, 
	version VARCHAR(64) NOT NULL, 
	published_at FLOAT NOT NULL, 
	PRIMARY KEY (name, version)
);
CREATE TABLE reports (
	device VARCHAR(64) NOT NULL, 
	enrolment INTEGER NOT NULL, 
	incarnation BIGINT NOT NULL, 
	nonce VARCHAR(16) NOT NULL, 
	seq BIGINT NOT NULL, 
	received_at FLOAT NOT NULL, 
	PRIMARY KEY (device, enrolment, incarnation, nonce, seq)
);
CREATE INDEX ix_reports_received_at ON reports (received_at);
CREATE TABLE rollouts (
	id INTEGER NOT NULL, 
	status VARCHAR(20) NOT NULL, 
	state BLOB NOT NULL, 
	created_at FLOAT NOT NULL, 
	updated_at FLOAT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_rollouts_status ON rollouts (status);
CREATE TABLE settings (
	"key" VARCHAR(64) NOT NULL, 
	value TEXT NOT NULL, 
	PRIMARY KEY ("key")
);
CREATE TABLE tokens (
	hash VARCHAR(64) NOT NULL, 
	name VARCHAR(64) NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (hash)
);
CREATE TABLE totals (
	device VARCHAR(64) NOT NULL, 
	deployment VARCHAR(64) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	windows BIGINT NOT NULL, 
	requests BIGINT NOT NULL, 
	errors BIGINT NOT NULL, 
	infer_ms TEXT NOT NULL, 
	PRIMARY KEY (device, deployment, digest)
);
CREATE TABLE windows (
	id INTEGER NOT NULL, 
	device VARCHAR(64) NOT NULL, 
	deployment VARCHAR(64) NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	received_at FLOAT NOT NULL, 
	length_s FLOAT NOT NULL, 
	is_clock_ok BOOLEAN NOT NULL, 
	requests BIGINT NOT NULL, 
	errors BIGINT NOT NULL, 
	rejected_inputs BIGINT NOT NULL, 
	worker_deaths BIGINT NOT NULL, 
	infer_ms TEXT NOT NULL, 
	PRIMARY KEY (id)
);
CREATE INDEX ix_windows_device ON windows (device, deployment, received_at);
CREATE INDEX ix_windows_received ON windows (received_at);
CREATE TABLE desired (
	device VARCHAR(64) NOT NULL, 
	deployment VARCHAR(64) NOT NULL, 
	sha256 VARCHAR(64) NOT NULL, 
	because VARCHAR(200) NOT NULL, 
	set_at FLOAT NOT NULL, 
	PRIMARY KEY (device, deployment), 
	FOREIGN KEY(device) REFERENCES devices (id), 
	FOREIGN KEY(sha256) REFERENCES bundles (sha256)
);
CREATE TABLE evidence (
	sha256 VARCHAR(64) NOT NULL, 
	statement BLOB NOT NULL, 
	PRIMARY KEY (sha256), 
	FOREIGN KEY(sha256) REFERENCES bundles (sha256)
);
CREATE TABLE orders (
	device VARCHAR(64) NOT NULL, 
	counter BIGINT NOT NULL, 
	envelope BLOB NOT NULL, 
	issued_at FLOAT NOT NULL, 
	expires_at FLOAT NOT NULL, 
	PRIMARY KEY (device, counter), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE TABLE outbox (
	device VARCHAR(64) NOT NULL, 
	counter BIGINT NOT NULL, 
	payload BLOB NOT NULL, 
	published_at FLOAT, 
	PRIMARY KEY (device), 
	FOREIGN KEY(device) REFERENCES devices (id)
);
CREATE INDEX ix_outbox_published_at ON outbox (published_at);
