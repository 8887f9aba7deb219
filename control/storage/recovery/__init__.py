"""What control does about data that was lost or is old.

`stored_bytes` looks whether the bucket has an artifact as it was pushed. `access_journal` keeps who may come in beside
the metadata, in lists in the bucket (`access_list`): changes are recorded by `access_changes`, and applied to metadata
that were restored by `access_replay`.
"""
