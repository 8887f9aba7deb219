"""Bytes to operations. May import api, sync, storage. Start with server."""
