"""Small least-squares problems, one per neuron, streamed over the frames of a recording."""
