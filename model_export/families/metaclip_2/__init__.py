"""MetaCLIP 2 (Chuang et al. 2025)."""
