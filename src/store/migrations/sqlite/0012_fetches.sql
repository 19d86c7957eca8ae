-- What was fetched for a task from a URL, so that its next attempt need not ask for it again. That the task needs the file is in
-- task_inputs, as with every file.
CREATE TABLE task_fetches (
    task_id BLOB NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    url     TEXT NOT NULL,
    sha256  TEXT NOT NULL,
    PRIMARY KEY (task_id, url)
) STRICT, WITHOUT ROWID;
