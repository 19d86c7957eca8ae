-- Files that clients gave. A row is there before its object's first byte and goes after its last, so that no crash leaves an object
-- nobody knows of. Without sha256 the object is still being written, or given up: nobody finds it by its content then.
CREATE TABLE inputs (
    object_key   TEXT    NOT NULL PRIMARY KEY,
    sha256       TEXT    UNIQUE,
    name         TEXT,
    content_type TEXT,
    extension    TEXT,
    bytes        INTEGER,
    expires_at   INTEGER NOT NULL,
    CHECK (sha256 IS NULL OR (name IS NOT NULL AND content_type IS NOT NULL AND bytes IS NOT NULL))
) STRICT;

CREATE INDEX inputs_expiry ON inputs (expires_at, object_key);

-- Which task needs which file. Newest tasks last, so that one that is not over is found first from the end.
CREATE TABLE task_inputs (
    sha256  TEXT NOT NULL,
    task_id BLOB NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    PRIMARY KEY (sha256, task_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX task_inputs_task ON task_inputs (task_id);
