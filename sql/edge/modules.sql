SELECT lower(name) FROM pragma_module_list
