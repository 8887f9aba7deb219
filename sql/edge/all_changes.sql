SELECT * FROM _skerry_changes ORDER BY number
