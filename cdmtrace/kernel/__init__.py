"""What the running kernel is like: its types, symbols, headers, nodes and flags.

Kernel versions are data here: everything is read from the kernel itself, and no
module compares version numbers.
"""
