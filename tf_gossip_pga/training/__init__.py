"""The Keras side: the callback and its parts."""
