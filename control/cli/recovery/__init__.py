"""`skerry artifacts verify`, which compares the bucket with the metadata."""
