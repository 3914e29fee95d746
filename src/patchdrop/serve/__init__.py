"""Apply a trained run to new images, and export it as ONNX graphs.

May import `evaluation`, `report`, and what lies below them.
"""
