"""anyclass, the online half: classifies any image against any labels, over HTTP. Never imports torch."""

import os

# onnxruntime reports its use over the network (seen in 1.32) and keeps a database for that in the home directory,
# unless this variable is set before its first import. A value that the operator has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
