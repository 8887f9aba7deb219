SELECT id, "from" AS child_column, "table" AS parent, coalesce("to", '') AS parent_column
FROM pragma_foreign_key_list(?) ORDER BY id, seq
