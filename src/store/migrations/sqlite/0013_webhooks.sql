-- Who is told of a task, and of which stages (a set of bits). NULL: nobody.
ALTER TABLE tasks ADD COLUMN hook_endpoint INTEGER;
ALTER TABLE tasks ADD COLUMN hook_events INTEGER NOT NULL DEFAULT 0;

-- An endpoint goes with its last task.
CREATE INDEX tasks_hook ON tasks (hook_endpoint) WHERE hook_endpoint IS NOT NULL;

-- Who receives messages: what counts for all messages that go to one place.
CREATE TABLE webhook_endpoints (
    id          INTEGER NOT NULL PRIMARY KEY, -- a hash of the URL
    url         TEXT    NOT NULL,
    failures    INTEGER NOT NULL DEFAULT 0,
    not_before  INTEGER,
    disabled_at INTEGER,
    -- When the next message is to be sent, not before the time above. NULL: none is, or none may be.
    due_at      INTEGER
) STRICT;

-- Where to look for work. One row per endpoint, however many messages wait for it.
CREATE INDEX webhook_endpoints_due ON webhook_endpoints (due_at, id) WHERE due_at IS NOT NULL;

-- Messages, the delivered ones included: they are the log. Written with the change they tell of. AUTOINCREMENT, because a number is part of
-- the id under which a receiver knows a message.
CREATE TABLE webhook_deliveries (
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    task_id    BLOB    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    endpoint   INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    stage      TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    error      TEXT, -- JSON
    state      TEXT    NOT NULL DEFAULT 'pending',
    -- Set for the first pending message of a task; the others wait for it.
    due_at     INTEGER,
    turn       INTEGER NOT NULL DEFAULT 0,
    sending    INTEGER NOT NULL DEFAULT 0,
    failures   INTEGER NOT NULL DEFAULT 0,
    tries      TEXT    NOT NULL DEFAULT '[]', -- JSON of Vec<Try>
    CHECK (due_at IS NULL OR state = 'pending')
) STRICT;

CREATE INDEX webhook_deliveries_due ON webhook_deliveries (endpoint, due_at, id) WHERE due_at IS NOT NULL;
CREATE INDEX webhook_deliveries_sending ON webhook_deliveries (endpoint, due_at) WHERE sending = 1;
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (task_id, id) WHERE state = 'pending';

-- Pages of the log, newest first. Entries end with the id.
CREATE INDEX webhook_deliveries_task ON webhook_deliveries (task_id);
CREATE INDEX webhook_deliveries_endpoint ON webhook_deliveries (endpoint);
CREATE INDEX webhook_deliveries_state ON webhook_deliveries (state);
