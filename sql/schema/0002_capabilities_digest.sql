-- Which document nodes.capabilities is: the digest that the node's polls have. '' where it wasn't told with one.
ALTER TABLE nodes ADD COLUMN IF NOT EXISTS capabilities_digest TEXT NOT NULL DEFAULT '';
