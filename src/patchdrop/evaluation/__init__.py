"""How right, how dear, and against what: accuracy and cost, yardsticks, operating points, verdicts.

May import `runs` and what lies below it.
"""
