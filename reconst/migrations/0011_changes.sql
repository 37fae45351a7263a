-- What each number of the table revision has changed, for running servers to look at that alone. A number without a row is of a version that
-- writes none, and may have changed anything; so may a kind that a version does not know. Rows that are old are removed.
CREATE TABLE changes (
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    subject_key INTEGER NOT NULL,
    PRIMARY KEY (number, kind, subject_key)
);

-- For what relays are told of users who are users no more.
CREATE INDEX members_removed ON members (removed_at) WHERE removed_at IS NOT NULL;
CREATE INDEX certificates_revoked ON certificates (revoked_at) WHERE revoked_at IS NOT NULL;
