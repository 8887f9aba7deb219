"""The CAs by which nodes trust control, and which nodes don't have them yet. Start reading at `ca`.

Its verb, `skerry ca`, asks what one replica gives out.
"""
