"""`anyclass batches`: submit, watch and fetch batch jobs."""
