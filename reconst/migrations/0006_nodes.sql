-- The servers that share this database. heard_ms is when a node was heard last, in milliseconds since 1970 by the database's clock, 0 once it has
-- stopped in order; epoch grows with every start. public is where relays reach its login port.
CREATE TABLE nodes (
    node_key INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    public TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    heard_ms INTEGER NOT NULL,
    capacity_bits_per_second INTEGER NOT NULL,
    load_bits_per_second INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    drain_until_ms INTEGER,
    removed_at INTEGER
);
CREATE UNIQUE INDEX nodes_live ON nodes (name) WHERE removed_at IS NULL;

-- Where each LAN is served, and where it was before.
CREATE TABLE placements (
    lan_key INTEGER NOT NULL PRIMARY KEY REFERENCES lans (lan_key),
    node_key INTEGER NOT NULL REFERENCES nodes (node_key),
    previous_node_key INTEGER REFERENCES nodes (node_key)
);

-- The node that the operator wants a LAN to be on, while it is there.
ALTER TABLE lans ADD COLUMN wanted_node_key INTEGER REFERENCES nodes (node_key);

-- What a node has counted of a user's period, beside what the table usage has: each node writes its own rows alone, so that writing one again
-- counts nothing twice. leased_bytes is what it may count beyond that before it asks again.
CREATE TABLE node_usage (
    member_id INTEGER NOT NULL REFERENCES members (member_id),
    period_start INTEGER NOT NULL,
    node_key INTEGER NOT NULL REFERENCES nodes (node_key),
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    leased_bytes INTEGER NOT NULL,
    PRIMARY KEY (member_id, period_start, node_key)
);
