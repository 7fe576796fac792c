"""The data plane: TensorFlow's CollectiveOps, buckets, wire formats, averages."""
