-- What happened to tasks, in the order in which it was committed: the one writer numbers the rows inside its transaction. AUTOINCREMENT,
-- because a reader's place must not be given away again when the newest rows go with their task.
CREATE TABLE task_events (
    seq      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    task_id  BLOB    NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    at       INTEGER NOT NULL,
    dispatch INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    stage    TEXT, -- that began
    error    TEXT, -- JSON, of that stage
    output   INTEGER, -- that was stored, by its place
    CHECK ((stage IS NULL) = (output IS NOT NULL))
) STRICT;

-- Its entries end with seq, so it gives one task's events in order.
CREATE INDEX task_events_task ON task_events (task_id);

-- An output is told once per run, whoever tells it first: its own record or the task's manifest.
CREATE UNIQUE INDEX task_events_output ON task_events (task_id, dispatch, output) WHERE output IS NOT NULL;

-- Tasks from before have one event: where they stand.
INSERT INTO task_events (task_id, at, dispatch, attempt, stage, error)
SELECT id, coalesce(finished_at, uploading_at, executing_at, started_at, created_at), dispatch, attempt,
       CASE
           WHEN state IN ('completed', 'failed', 'cancelled') THEN state
           WHEN cancel_requested_at IS NOT NULL THEN 'cancelling'
           WHEN state = 'pending' THEN 'queued'
           WHEN state = 'dispatching' THEN 'preparing'
           ELSE state
       END,
       CASE WHEN state IN ('failed', 'scheduled') THEN error END
FROM tasks
ORDER BY created_at, id;
