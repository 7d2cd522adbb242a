"""The engine of a model in a process of its own, and what the front keeps of it."""
