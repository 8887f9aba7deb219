-- All foreign keys: whose they are, and which table they refer to.
SELECT s.name AS child, f."table" AS parent
FROM sqlite_schema AS s JOIN pragma_foreign_key_list(s.name) AS f
WHERE s.type = 'table' AND f.seq = 0
ORDER BY s.name, f.id
