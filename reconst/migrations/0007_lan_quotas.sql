-- What all users of a LAN may spend together; a column without a value sets no limit.
CREATE TABLE lan_limits (
    lan_key INTEGER PRIMARY KEY REFERENCES lans (lan_key),
    quota_bytes INTEGER CHECK (quota_bytes > 0),
    period TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    counts TEXT NOT NULL CHECK (counts IN ('up', 'down', 'both')),
    throttle_bits_per_second INTEGER CHECK (throttle_bits_per_second > 0),
    rate_up_bits_per_second INTEGER CHECK (rate_up_bits_per_second > 0),
    rate_down_bits_per_second INTEGER CHECK (rate_down_bits_per_second > 0),
    max_flows INTEGER CHECK (max_flows > 0)
);

-- Bytes of payload that they have moved in the period that began then.
CREATE TABLE lan_usage (
    lan_key INTEGER NOT NULL REFERENCES lans (lan_key),
    period_start INTEGER NOT NULL,
    up_bytes INTEGER NOT NULL,
    down_bytes INTEGER NOT NULL,
    PRIMARY KEY (lan_key, period_start)
);
