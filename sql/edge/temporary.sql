SELECT name FROM sqlite_temp_schema
