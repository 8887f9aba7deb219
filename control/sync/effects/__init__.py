"""What the schema changes of a release, a move or an amendment do to nodes beside what they are for: rows that can be
lost, and calls that write and have to wait.

Start with `change_effects` (what is read and refused). `registered_changes` reads changes with what their check found,
`losses` and `stalls` compare that with what nodes have told of their rows.
"""
