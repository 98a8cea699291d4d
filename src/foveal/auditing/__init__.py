"""What is in the data and what is wrong with it: checks over the facts of the one decode pass."""
