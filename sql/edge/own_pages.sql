-- Root pages of the tables and indices of the runtime (1), and of SQLite and libsql themselves (0).
SELECT rootpage, tbl_name LIKE '\_skerry\_%' ESCAPE '\' AS is_runtimes
FROM sqlite_schema
WHERE rootpage > 0
  AND (tbl_name LIKE '\_skerry\_%' ESCAPE '\' OR tbl_name LIKE 'sqlite\_%' ESCAPE '\' OR tbl_name LIKE 'libsql\_%' ESCAPE '\')
