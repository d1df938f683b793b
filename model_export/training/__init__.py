"""Contrastive training: objective, schedule, loop, resume."""
