"""The backup of the node's database on the node: the checkpointer's process writes what was committed as LTX files into
a local folder (`shipper`, `local_files`), from which the front uploads them (docs/adr/0074)."""
