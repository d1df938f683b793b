"""The command that makes a bundle from a checkpoint or a training run."""
