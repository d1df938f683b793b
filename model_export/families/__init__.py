"""The model families: towers, configuration, key tables, preprocessing, tokenizer; a folder and a row each."""
