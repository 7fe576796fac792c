"""Which process this is: its rank, the addresses of all workers, its devices."""
