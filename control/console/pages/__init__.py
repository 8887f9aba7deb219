"""The console's pages: a module for each page, or for all pages and forms about one subject.

A page is a module here and templates of the same name in `templates`; `console_routes` lists them all. Start with
`release_pages`: what a page reads, its live parts, and an action whose plan is shown before it is carried out. What
pages take from their requests is in `page_input`.
"""
