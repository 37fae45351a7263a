-- Whose PC a relay is, if that user is known.
ALTER TABLE members ADD COLUMN owner_id INTEGER REFERENCES members (member_id);

-- What a relay's lines have carried for users in the calendar month (UTC) that began then, headers included.
CREATE TABLE contributions (
    member_id INTEGER NOT NULL REFERENCES members (member_id),
    month_start INTEGER NOT NULL,
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    PRIMARY KEY (member_id, month_start)
);
