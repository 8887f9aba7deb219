SELECT name, type, "notnull", pk FROM pragma_table_xinfo(?) WHERE hidden = 0
