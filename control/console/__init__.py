"""The console: web pages for operators, rendered on the server, readable and usable without scripts.

May import: `access`, `api`, `storage`, `sync` and the modules at the top of `control`. Start with `console_routes` (all
pages), `visits` (a request for a page, its visitor, and what a page can do with it) and `rendering` (templates, and the
headers of every answer). A page is a module in `pages` and a template of the same name in `templates`.
"""
