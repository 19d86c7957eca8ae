-- What processes that share the file tell each other about themselves, for a short time.
CREATE TABLE notices (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    body BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) STRICT;
CREATE INDEX notices_age ON notices (expires_at);
