"""anyclass, the online half: classifies any image against any labels, over HTTP. Never imports torch."""

import os

# onnxruntime reports its use over the network (seen in 1.32), and keeps a database in the home directory for that,
# unless it is told not to before it is first imported. What the operator has set stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
