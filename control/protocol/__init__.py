"""What control and the edge share: the messages between them, the manifest, and the common parts of both programs.

Both packages import it; it imports nothing else of the project. Start with `wire` (the messages) and `manifest` (what a
version may use). `faults`, `trace_context`, `histogram` and `version` go with calls and messages; `command_line`,
`counts`, `findings` and `settings_in_force` with what a person types and reads.
Each side's table of settings is built with `settings_table`.
"""
