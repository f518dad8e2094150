"""Ray's side of a cluster: starting it, placing its processes, more and fewer of them, ending it."""
