-- Root pages of the tables and indices in which virtual tables keep their data.
SELECT s.rootpage
FROM sqlite_schema AS s JOIN pragma_table_list AS l ON l.schema = 'main' AND l.name = s.tbl_name
WHERE s.rootpage > 0 AND l.type = 'shadow'
