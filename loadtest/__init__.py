"""How it holds: traces, generated conversations, and the simulator of a replica under load."""
