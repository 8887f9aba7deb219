"""`skerry test`: what a project's functions must answer, by cases in files.

`case_files` reads the cases, `case_calls` has the calls made, `case_report` says how a call differs from its case.
Start with `run_cases`, the command.
"""
