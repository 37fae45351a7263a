-- What is added to a user's quota for what the user's relays lend: a part of it, and the most in a period. Without a part, nothing.
ALTER TABLE limits ADD COLUMN earn_percent INTEGER CHECK (earn_percent BETWEEN 1 AND 100);
ALTER TABLE limits ADD COLUMN earn_at_most_bytes INTEGER CHECK (earn_at_most_bytes > 0);

-- Bytes of others' payload that the relays of an account's users have carried in the account's period that began then.
CREATE TABLE lent (
    member_id INTEGER NOT NULL REFERENCES members (member_id),
    period_start INTEGER NOT NULL,
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    PRIMARY KEY (member_id, period_start)
);

-- The last that each run of a server has added there, so that what is sent again because its answer was lost is not added twice.
CREATE TABLE lent_runs (
    run_id BIGINT PRIMARY KEY,
    number INTEGER NOT NULL,
    added_at INTEGER NOT NULL
);
