"""An author's work on a project in a folder: create, build, serve locally, test and push it.

Start with `project_files`, which reads the project. `authoring` writes and checks one, `toolchains` builds it, `dev`
serves it locally and follows its files, `run_cases` runs its test cases, and `project_push` makes a release of it.
"""
