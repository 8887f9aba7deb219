SELECT type, name, tbl_name, sql
FROM sqlite_schema
WHERE name NOT LIKE 'sqlite\_%' ESCAPE '\' AND name NOT LIKE '\_skerry\_%' ESCAPE '\'
ORDER BY type, name
