-- Times are seconds since 1970 UTC. Nothing is deleted: what is removed keeps its row, so that a member who was removed is told so and
-- accounting can still name it.

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE lans (
    lan_key INTEGER PRIMARY KEY,
    lan_id INTEGER NOT NULL CHECK (lan_id BETWEEN 1 AND 65535),
    name TEXT NOT NULL,
    data_port INTEGER NOT NULL CHECK (data_port BETWEEN 1 AND 65535),
    created_at INTEGER NOT NULL,
    removed_at INTEGER
);
CREATE UNIQUE INDEX lans_live_id ON lans (lan_id) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX lans_live_name ON lans (name) WHERE removed_at IS NULL;
CREATE UNIQUE INDEX lans_live_data_port ON lans (data_port) WHERE removed_at IS NULL;

CREATE TABLE members (
    member_id INTEGER PRIMARY KEY,
    lan_key INTEGER NOT NULL REFERENCES lans (lan_key),
    role TEXT NOT NULL CHECK (role IN ('user', 'relay')),
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    removed_at INTEGER
);
CREATE UNIQUE INDEX members_live ON members (lan_key, role, name) WHERE removed_at IS NULL;

-- What a user may spend; a column without a value sets no limit.
CREATE TABLE limits (
    member_id INTEGER PRIMARY KEY REFERENCES members (member_id),
    quota_bytes INTEGER CHECK (quota_bytes > 0),
    period TEXT NOT NULL,
    rate_up_bits_per_second INTEGER CHECK (rate_up_bits_per_second > 0),
    rate_down_bits_per_second INTEGER CHECK (rate_down_bits_per_second > 0),
    max_flows INTEGER CHECK (max_flows > 0)
);

-- A member is who shows exactly one of these, not revoked; a member may hold several while one replaces another.
CREATE TABLE certificates (
    certificate_id INTEGER PRIMARY KEY,
    member_id INTEGER NOT NULL REFERENCES members (member_id),
    der BLOB NOT NULL UNIQUE,
    issued_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
);
CREATE INDEX certificates_of_member ON certificates (member_id);
