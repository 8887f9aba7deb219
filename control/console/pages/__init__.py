"""The console's pages about what a fleet runs and who runs it: releases, functions, schema, audit, operators, settings.

A page is a module here and templates of its name in `templates`; `console_routes` has the list of all. Start with
`release_pages` (what a page reads, and its live parts) and `release_forms` (an act: its plan, and doing it once).
"""
