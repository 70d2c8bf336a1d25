"""What an exported network's file has in it: the contract of those who write and those who read one."""

ANSWERS = {"logits": 2, "heads": 3}
"""Axes of its outputs: (N, classes); with several decision heads, each one's (N, heads, classes)."""

OPSET = 20
"""Of ONNX."""
