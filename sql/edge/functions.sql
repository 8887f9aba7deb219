SELECT DISTINCT lower(name) FROM pragma_function_list
