-- What is done differently for one task: JSON of `TaskOptions`.
ALTER TABLE task_payloads ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
