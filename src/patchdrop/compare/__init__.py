"""Every row of the tables side by side: trained, judged, timed and laid out by one command."""
