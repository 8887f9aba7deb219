-- Ordinary tables of the database, in the order of their making.
SELECT s.name, s.sql
FROM sqlite_schema AS s JOIN pragma_table_list AS l ON l.schema = 'main' AND l.name = s.name
WHERE s.type = 'table' AND l.type = 'table' AND s.name NOT LIKE 'sqlite\_%' ESCAPE '\'
  AND s.name NOT LIKE '\_skerry\_%' ESCAPE '\' AND s.name NOT LIKE 'libsql\_%' ESCAPE '\'
ORDER BY s.rowid
