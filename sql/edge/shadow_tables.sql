SELECT lower(name) FROM pragma_table_list WHERE schema = 'main' AND type = 'shadow'
