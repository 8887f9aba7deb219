-- An ordinary table with rowids, and the column that is its INTEGER PRIMARY KEY, if it has one: a key with an index of
-- its own, as INTEGER PRIMARY KEY DESC, isn't the rowid, and may be NULL or no integer.
SELECT coalesce((
    SELECT CASE WHEN count(*) = 1 AND upper(max(c.type)) = 'INTEGER' THEN max(c.name) END
    FROM pragma_table_xinfo(l.name) AS c WHERE c.pk > 0
    AND NOT EXISTS (SELECT 1 FROM pragma_index_list(l.name) AS i WHERE i.origin = 'pk')
), '')
FROM pragma_table_list AS l
WHERE l.schema = 'main' AND l.type = 'table' AND l.wr = 0 AND l.name = ? COLLATE NOCASE
