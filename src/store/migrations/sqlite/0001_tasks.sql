-- Times are milliseconds since 1970 UTC, ids are the sixteen bytes of a UUID.
-- A second dialect has a folder of its own next to this one, with the same names for the same things.

-- Every task, finished ones included. Rows stay narrow: SQLite rewrites a row's overflow pages with every change of its size, so
-- whatever is large lives in a table of its own.
CREATE TABLE tasks (
    id                  BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    tenant              INTEGER NOT NULL,
    lane                INTEGER NOT NULL,
    workflow            TEXT,
    priority            INTEGER NOT NULL,
    sort_key            INTEGER NOT NULL,
    state               TEXT    NOT NULL,
    generation          INTEGER NOT NULL,
    fence               INTEGER NOT NULL,
    dispatch            INTEGER NOT NULL,
    attempt             INTEGER NOT NULL,
    max_attempts        INTEGER NOT NULL,
    poison              INTEGER NOT NULL,
    timeout_ms          INTEGER,
    worker              TEXT,
    lease_until         INTEGER,
    prompt_id           TEXT,
    backend             TEXT,
    client              TEXT,
    accepted            INTEGER NOT NULL DEFAULT 0,
    run_at              INTEGER,
    cancel_requested_at INTEGER,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER,
    executing_at        INTEGER,
    uploading_at        INTEGER,
    finished_at         INTEGER,
    error               TEXT, -- JSON
    CHECK ((worker IS NULL) = (lease_until IS NULL)),
    CHECK ((lease_until IS NOT NULL) = (state IN ('dispatching', 'executing', 'uploading'))),
    CHECK ((run_at IS NOT NULL) = (state = 'scheduled')),
    CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled')))
) STRICT;

-- The order of the queue, one lane after the other. It holds waiting tasks only, so taking its head costs the same however many
-- wait and however many are over. Used only where a query says state = 'pending' in so many words.
CREATE INDEX tasks_claim ON tasks (lane, sort_key, id) WHERE state = 'pending';

-- Tasks that wait for their time are kept out of the index above: a claim would have to walk over them.
CREATE INDEX tasks_scheduled ON tasks (run_at, id) WHERE state = 'scheduled';

CREATE INDEX tasks_leases ON tasks (lease_until, id) WHERE lease_until IS NOT NULL;

-- Pages of the list, newest first: of all tasks, of one state, of one workflow.
CREATE INDEX tasks_list ON tasks (created_at, id);
CREATE INDEX tasks_list_state ON tasks (state, created_at, id);
CREATE INDEX tasks_list_workflow ON tasks (workflow, created_at, id) WHERE workflow IS NOT NULL;

-- What is due to be pruned. By state, because failed tasks are kept longer than others.
CREATE INDEX tasks_finished ON tasks (state, finished_at, id) WHERE finished_at IS NOT NULL;

-- The large, never-changing part of a task.
CREATE TABLE task_payloads (
    task_id  BLOB NOT NULL PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    graph    TEXT NOT NULL,
    inputs   TEXT NOT NULL,
    metadata TEXT NOT NULL
) STRICT;

-- A task's artifacts. object_key and the columns after it are set when the artifact is stored.
CREATE TABLE task_outputs (
    task_id      BLOB    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    idx          INTEGER NOT NULL,
    node_id      TEXT    NOT NULL,
    kind         TEXT    NOT NULL,
    filename     TEXT    NOT NULL,
    subfolder    TEXT    NOT NULL,
    folder_type  TEXT    NOT NULL,
    object_key   TEXT,
    content_type TEXT,
    bytes        INTEGER,
    sha256       TEXT,
    PRIMARY KEY (task_id, idx)
) STRICT;

-- Keys of requests that made a task. A key goes with its task, or earlier.
CREATE TABLE idempotency (
    tenant      INTEGER NOT NULL,
    key         TEXT    NOT NULL,
    body_sha256 BLOB    NOT NULL CHECK (length(body_sha256) = 32),
    task_id     BLOB    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT;

CREATE INDEX idempotency_task ON idempotency (task_id);
CREATE INDEX idempotency_age ON idempotency (created_at, tenant, key);

-- Facts about the file itself.
CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
