"""Metadata and artifacts: the database and the object store. Start with database."""
