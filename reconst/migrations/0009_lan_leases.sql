-- What a node has counted of a LAN's period, beside what the table lan_usage has, as node_usage has it of a user's.
CREATE TABLE lan_node_usage (
    lan_key INTEGER NOT NULL REFERENCES lans (lan_key),
    period_start INTEGER NOT NULL,
    node_key INTEGER NOT NULL REFERENCES nodes (node_key),
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    leased_bytes INTEGER NOT NULL,
    PRIMARY KEY (lan_key, period_start, node_key)
);
