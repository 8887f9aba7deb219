-- Tables and indexes with their bytes, the largest first. Every page is looked at.
SELECT name, pgsize AS bytes FROM dbstat WHERE aggregate = TRUE ORDER BY pgsize DESC
