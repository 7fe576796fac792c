"""Who averages with whom, and when: pure, without TensorFlow."""
