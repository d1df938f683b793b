"""Labelled images: folders, Parquet, WebDataset."""
