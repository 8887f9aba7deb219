-- Everything in the schema that is the runtime's or names it.
SELECT type, name, tbl_name, rootpage, sql
FROM sqlite_schema
WHERE tbl_name LIKE '\_skerry\_%' ESCAPE '\' OR sql LIKE '%\_skerry\_%' ESCAPE '\'
ORDER BY type, name
