"""Networks as ONNX files: written, judged before they run, run. Free of torch but for writing them."""

from atnet.extras import require

require("export", "onnx", "onnxruntime")  # to write one takes onnxscript too, see `graph`
