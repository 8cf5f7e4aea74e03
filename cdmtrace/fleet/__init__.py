"""Many recordings on the workers of a Dask cluster, each judged by itself.

places: which files there are, and what they may be called. fetch: a file of an object
store on a worker's disk, for as long as it is read. work: what a worker does; it gets
names of files, and gives plain documents. crew: the cluster, and what becomes of a
worker that dies. survey: all of that in order. What the documents come to as a whole is
``cdmtrace.analysis.fleet``.
"""
