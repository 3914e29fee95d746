"""PatchDrop: learn when and where to zoom (Uzkent & Ermon, CVPR 2020)."""
