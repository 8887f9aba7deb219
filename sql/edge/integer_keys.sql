-- An ordinary table with rowids, and the column that is its INTEGER PRIMARY KEY, if it has one.
SELECT coalesce((
    SELECT CASE WHEN count(*) = 1 AND upper(max(c.type)) = 'INTEGER' THEN max(c.name) END
    FROM pragma_table_xinfo(l.name) AS c WHERE c.pk > 0
), '')
FROM pragma_table_list AS l
WHERE l.schema = 'main' AND l.type = 'table' AND l.wr = 0 AND l.name = ? COLLATE NOCASE
