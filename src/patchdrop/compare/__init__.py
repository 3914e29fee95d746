"""Every row of the paper's tables side by side: trained, judged, timed and laid out by one command.

May import `training` and what lies below it.
"""
