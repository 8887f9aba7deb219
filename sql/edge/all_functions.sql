SELECT * FROM _skerry_functions ORDER BY name
