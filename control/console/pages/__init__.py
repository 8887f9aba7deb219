"""The console's pages, one module each, or one for all pages and forms about a subject.

A page is a module here and templates of its name in `templates`; `console_routes` has the list of all. Start with
`release_pages`: what a page reads, its live parts, and an act, whose plan is shown before it is done once. What pages
take from their requests is in `page_input`.
"""
