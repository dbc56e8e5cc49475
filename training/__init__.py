"""Where the embedded checkpoint comes from: data, training stages, export and evaluation."""
