-- Which relays are a user's, for what a user has lent.
CREATE INDEX members_of_owner ON members (owner_id) WHERE owner_id IS NOT NULL;
