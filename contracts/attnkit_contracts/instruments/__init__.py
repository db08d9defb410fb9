"""What a check looks through: clocks, poisoned memory, meters, and a process's state.

Each module is a tool of its own; start with `poison_and_meters`.
"""
