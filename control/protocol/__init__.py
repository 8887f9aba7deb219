"""What control and the edge share: the messages between them, the manifest, and what both programs say alike.

Both packages import it; it imports nothing else of the project. Start with `wire` (the messages) and `manifest` (what a
version may use). `faults`, `trace_context`, `histogram` and `version` go with calls and messages; `command_line`,
`counts`, `findings` and `settings_in_force` with what a person types and reads.
`settings_table` is what each side's table of settings is made of.
"""
