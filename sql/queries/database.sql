-- Whether the database answers.
-- name: ping
SELECT 1;
