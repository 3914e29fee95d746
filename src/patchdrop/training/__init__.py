"""Supervised classifiers, then the policy's stages Pt, Ft-1 and Ft-2."""
