-- When what still runs on a paused backend is moved elsewhere; null = never.
ALTER TABLE pauses ADD COLUMN move_at INTEGER;
