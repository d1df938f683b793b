"""Reader of Hugging Face repositories."""
