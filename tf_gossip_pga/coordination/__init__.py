"""The control plane: who is alive, who is late, who is a member. No TensorFlow."""
