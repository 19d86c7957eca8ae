-- Since when a task waits for its turn, and whether it shall only store what it left behind.
ALTER TABLE tasks ADD COLUMN queued_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN uploads_only INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET queued_at = created_at;

-- The order of the queue, as before, with what it takes to tell how many wait and since when without a look at their rows.
DROP INDEX tasks_claim;
CREATE INDEX tasks_claim ON tasks (lane, sort_key, id, priority, queued_at) WHERE state = 'pending';

-- What takes nothing new: a backend, or with an empty name the whole queue.
CREATE TABLE pauses (
    backend TEXT    NOT NULL PRIMARY KEY,
    since   INTEGER NOT NULL
) STRICT;

-- What the nodes of a task's newest run took: JSON of `Vec<NodeTiming>`. It is of no worth once the task has another dispatch.
CREATE TABLE task_nodes (
    task_id  BLOB    NOT NULL PRIMARY KEY REFERENCES tasks (id) ON DELETE CASCADE,
    dispatch INTEGER NOT NULL,
    nodes    TEXT    NOT NULL
) STRICT;
