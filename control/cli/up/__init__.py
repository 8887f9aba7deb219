"""`skerry up`: everything on this machine, with an example.

Start with `up_steps`, the command. `installation` has the files and processes, `example` what is deployed.
"""
