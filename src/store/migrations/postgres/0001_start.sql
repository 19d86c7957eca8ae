-- Times are milliseconds since 1970 UTC by the database's clock. The same names for the same things as in the dialect next to this one.
-- Every whole number is a BIGINT: one way to read them. COLLATE "C" sorts by bytes, as every store does.

-- What the tasks of a lane need of a backend: JSON of `Needs`. Lane 0 needs nothing; it is here so that every task has its lane, and none
-- can lose it to a clean-up in another process.
CREATE TABLE lanes (
    id    BIGINT NOT NULL PRIMARY KEY,
    needs TEXT   NOT NULL
);
INSERT INTO lanes (id, needs) VALUES (0, '{}');

-- Who receives messages: what counts for all messages that go to one place. Whoever changes a message holds its endpoint's row.
CREATE TABLE webhook_endpoints (
    id          BIGINT NOT NULL PRIMARY KEY, -- a hash of the URL
    url         TEXT   NOT NULL,
    failures    BIGINT NOT NULL DEFAULT 0,
    not_before  BIGINT,
    disabled_at BIGINT,
    -- When the next message is to be sent, not before the time above. NULL: none is, or none may be.
    due_at      BIGINT
) WITH (fillfactor = 70);
CREATE INDEX webhook_endpoints_due ON webhook_endpoints (due_at, id) WHERE due_at IS NOT NULL;

-- Every task, finished ones included. Rows stay narrow: whatever is large lives in a table of its own. Room is left in each page so that
-- a change finds place beside the old row, and dead rows are cleared away early: a claim has to walk over those at the head of its index.
CREATE TABLE tasks (
    id                  UUID    NOT NULL PRIMARY KEY,
    tenant              BIGINT  NOT NULL,
    lane                BIGINT  NOT NULL REFERENCES lanes (id),
    workflow            TEXT COLLATE "C",
    priority            BIGINT  NOT NULL,
    sort_key            BIGINT  NOT NULL,
    queued_at           BIGINT  NOT NULL,
    state               TEXT    NOT NULL,
    generation          BIGINT  NOT NULL,
    uploads_only        BOOLEAN NOT NULL DEFAULT false,
    fence               BIGINT  NOT NULL,
    dispatch            BIGINT  NOT NULL,
    attempt             BIGINT  NOT NULL,
    max_attempts        BIGINT  NOT NULL,
    poison              BIGINT  NOT NULL,
    ooms                BIGINT  NOT NULL DEFAULT 0,
    timeout_ms          BIGINT,
    worker              TEXT,
    lease_until         BIGINT,
    prompt_id           TEXT,
    backend             TEXT,
    client              TEXT,
    accepted            BOOLEAN NOT NULL DEFAULT false,
    run_at              BIGINT,
    cancel_requested_at BIGINT,
    created_at          BIGINT  NOT NULL,
    started_at          BIGINT,
    executing_at        BIGINT,
    uploading_at        BIGINT,
    finished_at         BIGINT,
    error               TEXT, -- JSON
    class               TEXT, -- how that error is treated
    hook_endpoint       BIGINT REFERENCES webhook_endpoints (id),
    hook_events         BIGINT  NOT NULL DEFAULT 0, -- a set of bits
    CHECK ((worker IS NULL) = (lease_until IS NULL)),
    CHECK ((lease_until IS NOT NULL) = (state IN ('dispatching', 'executing', 'uploading'))),
    CHECK ((run_at IS NOT NULL) = (state = 'scheduled')),
    CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled')))
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- The order of the queue, one lane after the other. It holds waiting tasks only, so taking its head costs the same however many wait and
-- however many are over. With what it takes to tell how many wait and since when.
CREATE INDEX tasks_claim ON tasks (lane, sort_key, id) INCLUDE (priority, queued_at) WHERE state = 'pending';
-- Tasks that wait for their time are kept out of the index above: a claim would have to walk over them.
CREATE INDEX tasks_scheduled ON tasks (run_at, id) WHERE state = 'scheduled';
CREATE INDEX tasks_leases ON tasks (lease_until, id) WHERE lease_until IS NOT NULL;
-- Pages of the list, newest first: of all tasks, of one state, of one workflow.
CREATE INDEX tasks_list ON tasks (created_at, id);
CREATE INDEX tasks_list_state ON tasks (state, created_at, id);
CREATE INDEX tasks_list_workflow ON tasks (workflow, created_at, id) WHERE workflow IS NOT NULL;
-- What is due to be pruned, and pages of what failed.
CREATE INDEX tasks_finished ON tasks (state, finished_at, id) WHERE finished_at IS NOT NULL;
CREATE INDEX tasks_failed ON tasks (class, finished_at, id) WHERE state = 'failed';
-- A lane, and an endpoint, goes with its last task.
CREATE INDEX tasks_lane ON tasks (lane, state) WHERE lane <> 0;
CREATE INDEX tasks_hook ON tasks (hook_endpoint) WHERE hook_endpoint IS NOT NULL;

-- The large, never-changing part of a task.
CREATE TABLE task_payloads (
    task_id  UUID NOT NULL PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    graph    TEXT NOT NULL,
    inputs   TEXT NOT NULL,
    metadata TEXT NOT NULL,
    options  TEXT NOT NULL
);

-- A task's artifacts: JSON of `Artifact`, because nobody searches in them.
CREATE TABLE task_outputs (
    task_id  UUID    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    idx      BIGINT  NOT NULL,
    stored   BOOLEAN NOT NULL,
    artifact TEXT    NOT NULL,
    PRIMARY KEY (task_id, idx)
);

-- What the nodes of a task's newest run took: JSON of `Vec<NodeTiming>`. It is of no worth once the task has another dispatch.
CREATE TABLE task_nodes (
    task_id  UUID   NOT NULL PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    dispatch BIGINT NOT NULL,
    nodes    TEXT   NOT NULL
);

-- Keys of requests that made a task. A key goes with its task, or earlier.
CREATE TABLE idempotency (
    tenant      BIGINT NOT NULL,
    key         TEXT COLLATE "C" NOT NULL,
    body_sha256 BYTEA  NOT NULL,
    task_id     UUID   NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, key)
);
CREATE INDEX idempotency_task ON idempotency (task_id);
CREATE INDEX idempotency_age ON idempotency (created_at, tenant, key);

-- What happened to tasks. Numbers are drawn under a lock that is held until the commit (`FINISH` in tx.rs), so they become visible in
-- their order.
CREATE SEQUENCE task_events_seq AS BIGINT;
CREATE TABLE task_events (
    seq      BIGINT NOT NULL PRIMARY KEY DEFAULT nextval('task_events_seq'),
    task_id  UUID   NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    at       BIGINT NOT NULL,
    dispatch BIGINT NOT NULL,
    attempt  BIGINT NOT NULL,
    stage    TEXT, -- that began
    error    TEXT, -- JSON, of that stage
    output   BIGINT, -- that was stored, by its place
    CHECK ((stage IS NULL) = (output IS NOT NULL))
);
CREATE INDEX task_events_task ON task_events (task_id, seq);
-- An output is told once per run, whoever tells it first: its own record or the task's manifest.
CREATE UNIQUE INDEX task_events_output ON task_events (task_id, dispatch, output) WHERE output IS NOT NULL;

-- What takes nothing new: a backend, or with an empty name the whole queue.
CREATE TABLE pauses (
    backend TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    since   BIGINT NOT NULL,
    move_at BIGINT -- when what still runs there is moved elsewhere; NULL = never
);

-- Every name of a workflow that ever had a version.
CREATE TABLE workflows (
    name      TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    last      BIGINT NOT NULL, -- the greatest number given to a version
    published BIGINT,
    revision  BIGINT NOT NULL
);
CREATE INDEX workflows_revision ON workflows (revision);
CREATE TABLE workflow_versions (
    name       TEXT COLLATE "C" NOT NULL REFERENCES workflows (name) ON DELETE CASCADE,
    version    BIGINT NOT NULL,
    sha256     BYTEA  NOT NULL,
    text       TEXT   NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);
CREATE INDEX workflow_versions_content ON workflow_versions (name, sha256, version);

-- Files that clients gave. A row is there before its object's first byte and goes after its last, so that no crash leaves an object
-- nobody knows of. Without sha256 the object is still being written, or given up: nobody finds it by its content then.
CREATE TABLE inputs (
    object_key   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    sha256       TEXT COLLATE "C" UNIQUE,
    name         TEXT,
    content_type TEXT,
    extension    TEXT,
    bytes        BIGINT,
    expires_at   BIGINT NOT NULL,
    CHECK (sha256 IS NULL OR (name IS NOT NULL AND content_type IS NOT NULL AND bytes IS NOT NULL))
);
CREATE INDEX inputs_expiry ON inputs (expires_at, object_key);

-- Which task needs which file.
CREATE TABLE task_inputs (
    sha256  TEXT COLLATE "C" NOT NULL,
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    PRIMARY KEY (sha256, task_id)
);
CREATE INDEX task_inputs_task ON task_inputs (task_id);

-- What was fetched for a task from a URL. The key is a hash: an index takes no text as long as a URL may be.
CREATE TABLE task_fetches (
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    url     TEXT NOT NULL,
    sha256  TEXT COLLATE "C" NOT NULL
);
CREATE UNIQUE INDEX task_fetches_url ON task_fetches (task_id, md5(url));

-- Messages, the delivered ones included: they are the log. Written with the change they tell of.
CREATE TABLE webhook_deliveries (
    id         BIGINT  NOT NULL GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    task_id    UUID    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    endpoint   BIGINT  NOT NULL,
    at         BIGINT  NOT NULL,
    stage      TEXT    NOT NULL,
    generation BIGINT  NOT NULL,
    attempt    BIGINT  NOT NULL,
    error      TEXT, -- JSON
    state      TEXT    NOT NULL DEFAULT 'pending',
    -- Set for the first pending message of a task; the others wait for it.
    due_at     BIGINT,
    turn       BIGINT  NOT NULL DEFAULT 0,
    sending    BOOLEAN NOT NULL DEFAULT false,
    failures   BIGINT  NOT NULL DEFAULT 0,
    tries      TEXT    NOT NULL DEFAULT '[]', -- JSON of Vec<Try>
    CHECK (due_at IS NULL OR state = 'pending')
) WITH (fillfactor = 70);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX webhook_deliveries_sending ON webhook_deliveries (endpoint, due_at) WHERE sending;
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (task_id, id) WHERE state = 'pending';
-- Pages of the log, newest first.
CREATE INDEX webhook_deliveries_task ON webhook_deliveries (task_id, id);
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint, id);
CREATE INDEX webhook_deliveries_state ON webhook_deliveries (state, id);

-- What processes that share the database tell each other about themselves, for a short time. A crash of the server may empty it.
CREATE UNLOGGED TABLE notices (
    kind       TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    body       BYTEA  NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (kind, name)
) WITH (fillfactor = 50);
CREATE INDEX notices_age ON notices (expires_at);

-- The last batch each process committed: who lost its connection during a COMMIT finds out here what became of it.
CREATE TABLE writers (
    id    UUID   NOT NULL PRIMARY KEY,
    batch BIGINT NOT NULL,
    at    BIGINT NOT NULL
) WITH (fillfactor = 50);

-- Facts about the database itself: `pruned`, the newest event that may be deleted; `set_back`, when and by whom the clock was last found
-- to be set back.
CREATE TABLE meta (
    name  TEXT   NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL,
    by    UUID
);
