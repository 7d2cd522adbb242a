"""Work on untrusted input in a child process that has no network and can be killed.

`ConfinedPool` runs the tasks of one module; `child` is the other side; `limits` is what binds it.
"""
