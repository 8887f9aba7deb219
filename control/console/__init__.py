"""The console: web pages for operators, made on the server, readable and usable without a script.

May import: `access`, `api`, `storage`, `sync` and the modules at the top of `control`. Start with `console_routes` (all
pages), `visits` (a request of a page, who it is from, and what a page can do with it) and `rendering` (templates, and
the headers of every answer). A page is a module in `pages`, and a template of its name in `templates`.
"""
