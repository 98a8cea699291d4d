"""Where in a picture a network looked: heatmaps, and the check that they depend on what the network has learnt."""
