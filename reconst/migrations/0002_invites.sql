-- An invite is for a member who is there already, perhaps still without a certificate. The secret itself is nowhere: secret_hash is the
-- SHA-256 of it, in hexadecimal. used_by_key is the public key that was certified, so that the same PC may ask again.
CREATE TABLE invites (
    invite_id BIGINT PRIMARY KEY,
    member_id BIGINT NOT NULL REFERENCES members (member_id),
    secret_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT,
    used_by_key TEXT,
    revoked_at BIGINT
);
CREATE INDEX invites_of_member ON invites (member_id);
