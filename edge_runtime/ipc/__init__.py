"""The messages between the front and its children, and how children are started.

May import only the modules at the top of `edge_runtime`. Start with `frames` (the messages; `request_head` is how a
call's request is written in one, `answer_head` the header lines of its answer), then `zygote_client` (the front's side
of a child's life) and `progress_page` (the shared memory in which workers say how far a call has come).
"""
