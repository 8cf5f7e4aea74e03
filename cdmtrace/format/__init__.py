"""The trace file: one Arrow IPC stream, written batch by batch.

``schema`` says what is in it, ``writer`` makes it, ``reader`` is the only
code that reads it, torn or whole, and ``framing`` keeps the reader from
trusting a length that the file claims.
"""
