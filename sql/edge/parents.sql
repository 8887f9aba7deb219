SELECT id, "from", "table", coalesce("to", '') FROM pragma_foreign_key_list(?) ORDER BY id, seq
