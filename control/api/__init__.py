"""What the API does, a module a resource. May import sync, storage. Start with operations."""
