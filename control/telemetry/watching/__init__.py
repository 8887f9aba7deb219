"""Watching nodes' records: lines of log, slow and failed calls, counts of calls. The words:

- A *record* is what a node tells of one thing, a line of JSON (`node_records`).
- A *watch* is an operator's question to nodes about their records, a row of the metadata. Polls tell it to the nodes
  (`control.sync.watches`), and each sends its records in *batches* to any replica.
- A *view* is what the operator who asked gets, on the replica that has the connection (`view`).
- The *relay* takes records from the replica that a node has sent them to, to the one that has the view (`relay`).

Start with `watch_service`, one replica's part in all of this.
"""
