"""A trained run at work on new images."""
