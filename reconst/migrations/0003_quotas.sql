-- Every administrative change adds one, so that a running reconst knows when to look again.
CREATE TABLE revision (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    number INTEGER NOT NULL
);
INSERT INTO revision (only_row, number) VALUES (1, 1);

-- Which bytes the quota counts, whose midnight its period begins at, the rate beyond it; without a rate, nothing goes beyond it.
ALTER TABLE limits ADD COLUMN counts TEXT NOT NULL DEFAULT 'both' CHECK (counts IN ('up', 'down', 'both'));
ALTER TABLE limits ADD COLUMN time_zone TEXT NOT NULL DEFAULT 'UTC';
ALTER TABLE limits ADD COLUMN throttle_bits_per_second INTEGER CHECK (throttle_bits_per_second > 0);

-- Whose limits and usage are this user's too, where one person is a user of several LANs.
ALTER TABLE members ADD COLUMN account_of INTEGER REFERENCES members (member_id);

-- Bytes of payload moved in the period that began then.
CREATE TABLE usage (
    member_id INTEGER NOT NULL REFERENCES members (member_id),
    period_start INTEGER NOT NULL,
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    PRIMARY KEY (member_id, period_start)
);
