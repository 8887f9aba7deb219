"""Limits what a process may do while it runs untrusted code or reads untrusted bytes: resource limits, no capabilities,
Landlock (files) and seccomp (system calls).

May import only `wal` and `control.protocol.faults`: everything imported here is in every fenced process. Start with
`fence` (the steps, in order), then `allowlists` (what each kind of process keeps); `landlock` and `libseccomp` are thin
wrappers around the kernel's interfaces.
"""
