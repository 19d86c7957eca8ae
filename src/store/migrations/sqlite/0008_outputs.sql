-- The whole of a text that a run reported (folder_type 'text'): it lies on no server.
ALTER TABLE task_outputs ADD COLUMN text TEXT;
-- What a stored output says about itself, size and length and so on: JSON of `Facts`.
ALTER TABLE task_outputs ADD COLUMN facts TEXT;
