-- Up to which task, in the order of their ends, it was looked for what runs that were given up left in storage.
CREATE TABLE swept (
    state       TEXT    NOT NULL PRIMARY KEY,
    finished_at INTEGER NOT NULL,
    id          BLOB    NOT NULL CHECK (length(id) = 16)
) STRICT;
