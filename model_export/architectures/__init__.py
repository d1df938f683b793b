"""Building blocks of towers that families share, in torch, and the encoders that a bundle serves."""
