"""Price pixels by a seller's tariff, and decide which areas to order under it.

May import `read` and what lies below it.
"""
