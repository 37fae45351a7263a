-- The schema that a program has to be made for, at least, to use this one: later migrations only add to it, until one says more here.
CREATE TABLE schema_needs (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    version INTEGER NOT NULL
);
INSERT INTO schema_needs (only_row, version) VALUES (1, 8);
