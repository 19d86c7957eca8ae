-- How often the newest generation of a task ran out of memory.
ALTER TABLE tasks ADD COLUMN ooms INTEGER NOT NULL DEFAULT 0;

-- Errors say how they are treated. Those from before do not: their code and whether they were worth another attempt tell it.
UPDATE tasks SET error = json_set(error, '$.class', CASE
    WHEN error ->> '$.code' IN ('invalid_prompt', 'partially_accepted', 'input_missing', 'input_refused') THEN 'validation'
    WHEN error ->> '$.code' IN ('out_of_memory', 'poison', 'timeout') THEN error ->> '$.code'
    WHEN error ->> '$.code' = 'upload_failed' THEN 'storage'
    WHEN error ->> '$.retryable' THEN 'transient'
    ELSE 'permanent'
END) WHERE error IS NOT NULL;
UPDATE task_events SET error = json_set(error, '$.class', CASE
    WHEN error ->> '$.code' IN ('invalid_prompt', 'partially_accepted', 'input_missing', 'input_refused') THEN 'validation'
    WHEN error ->> '$.code' IN ('out_of_memory', 'poison', 'timeout') THEN error ->> '$.code'
    WHEN error ->> '$.code' = 'upload_failed' THEN 'storage'
    WHEN error ->> '$.retryable' THEN 'transient'
    ELSE 'permanent'
END) WHERE error IS NOT NULL;

-- Pages of what failed, newest first: all of it is in tasks_finished, what is treated alike is here.
CREATE INDEX tasks_failed ON tasks (error ->> '$.class', finished_at, id) WHERE state = 'failed';
