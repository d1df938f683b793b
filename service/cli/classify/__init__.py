"""`anyclass classify`: inputs to outcomes to a table, JSON lines or Parquet."""
