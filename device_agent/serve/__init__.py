"""HTTP: `http` and `connection` speak it in both processes, `routes` says whose a path is, the rest runs in workers."""
