"""SigLIP (Zhai et al. 2023) and SigLIP 2."""
