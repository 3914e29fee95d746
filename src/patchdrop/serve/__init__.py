"""A trained run at work on new images, and as ONNX graphs.

May import `evaluation`, `report`, and what lies below them.
"""
