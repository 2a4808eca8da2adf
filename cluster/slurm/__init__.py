"""A cluster of Ray inside one Slurm job."""
