-- Record a change: who made it, in what call, and the values that it changed.
-- name: record
INSERT INTO audit (id, at, actor_kind, operator, address, call_id, action, subject, details, values_before, values_after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);
