"""What a process may still do while it runs code or reads bytes of others: resource limits, no capabilities, Landlock
(files) and seccomp (system calls).

May import `wal` and `control.protocol.faults` alone: whatever is imported here is in every fenced process. Start with
`fence` (the steps, in their order), then `allowlists` (what each kind of process keeps); `landlock` and `libseccomp`
are thin wrappers around the kernel's interfaces.
"""
