"""Large tiled scenes: are they fit, what would reading cost, and the work itself."""
