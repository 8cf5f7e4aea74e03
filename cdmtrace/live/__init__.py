"""A look at a recording while it is made.

``process`` is the recorder's side, and all that it imports: it starts the viewer and
hands it the file. The viewer (``child``, or ``cdmtrace live FILE``) is a process of its
own that reads the file like anybody else; whatever becomes of it, recording goes on.
"""
