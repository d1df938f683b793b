"""Run a function on many tasks: in processes of this machine, or on a cluster."""
