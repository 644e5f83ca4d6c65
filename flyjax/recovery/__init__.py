"""What was learned: the circuit read off a trained network, and how good it is."""
