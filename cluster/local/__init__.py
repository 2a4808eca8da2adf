"""Several hosts on one machine: a Ray cluster to try things on, and to lose hosts of.

    python -m cluster.local up --workers 2
    eval "$(python -m cluster.local env)"
    ray job submit --working-dir . -- python -m pipeline train synthetic --workers 2 …
    python -m cluster.local kill w2        # a machine is gone, without a word on the network
    python -m cluster.local add            # another one joins
    python -m cluster.local cut w1         # its cable is pulled …
    python -m cluster.local heal w1        # … and put back
    python -m cluster.local down

As root each host is a network namespace with an address, process ids, a host name, `/tmp/ray` and `/dev/shm` of its own; the file system
is the machine's, so any folder is a shared one. Elsewhere hosts are plain groups of processes on loopback, which can be killed but not
cut off. `up` says which of the two it made.
"""
