-- Which target holds a stored output, by its name in the configuration; null = the local folder.
ALTER TABLE task_outputs ADD COLUMN target TEXT;
