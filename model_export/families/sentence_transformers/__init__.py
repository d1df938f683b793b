"""Text models of sentence-transformers whose vectors are those of a CLIP's image tower (Reimers, Gurevych 2020)."""
