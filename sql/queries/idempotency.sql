-- The answer kept under an operator's key.
-- name: find
SELECT request_digest, response FROM idempotency WHERE operator = $1 AND key = $2;

-- Keep an answer.
-- name: keep
INSERT INTO idempotency (operator, key, request_digest, status, response, created_at) VALUES ($1, $2, $3, $4, COALESCE($5::jsonb, 'null'::jsonb), $6);
