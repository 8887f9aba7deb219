INSERT INTO _skerry_release (id, release_id, number, generation, applied, applied_at)
VALUES (1, ?, ?, +CAST(? AS INTEGER), 1, ?)
ON CONFLICT (id) DO UPDATE SET
    release_id = excluded.release_id,
    number = excluded.number,
    generation = excluded.generation,
    applied = applied + 1,
    applied_at = excluded.applied_at
