"""Labelled images: where they come from, how they are split, and how batches are made."""
