-- Tables that hold rows, virtual ones too: not those in which virtual tables keep theirs.
SELECT s.name, coalesce(s.sql, '')
FROM sqlite_schema AS s JOIN pragma_table_list AS l ON l.schema = 'main' AND l.name = s.name
WHERE s.type = 'table' AND l.type IN ('table', 'virtual') AND s.name NOT LIKE 'sqlite\_%' ESCAPE '\'
  AND s.name NOT LIKE '\_skerry\_%' ESCAPE '\' AND s.name NOT LIKE 'libsql\_%' ESCAPE '\'
ORDER BY s.rowid
