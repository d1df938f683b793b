"""OpenAI's protocol: embeddings, files, batches."""
