"""Train the stages in order: the supervised classifiers, then the policy in Pt, Ft-1 and Ft-2.

May import `evaluation`, `costs`, and what lies below them.
"""
