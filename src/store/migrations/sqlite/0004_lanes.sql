-- What the tasks of a lane need of a backend: JSON of `Needs`. Lane 0, which needs nothing, has no row.
CREATE TABLE lanes (
    id    INTEGER NOT NULL PRIMARY KEY,
    needs TEXT    NOT NULL
) STRICT;

-- The tasks of each lane but 0, the finished ones included: a lane goes with its last task.
CREATE INDEX tasks_lane ON tasks (lane, state) WHERE lane <> 0;
