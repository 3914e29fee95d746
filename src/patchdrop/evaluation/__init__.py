"""Accuracy, cost and the yardsticks."""
