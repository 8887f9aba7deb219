-- Record what an operator did.
-- name: record
INSERT INTO audit (id, at, operator, action, subject, details) VALUES ($1, $2, $3, $4, $5, $6);
