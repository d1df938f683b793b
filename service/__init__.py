"""anyclass, the online half: classifies any image against any labels, over HTTP. Never imports torch."""
