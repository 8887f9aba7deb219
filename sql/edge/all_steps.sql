SELECT * FROM _skerry_steps ORDER BY number, step
