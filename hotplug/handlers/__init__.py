"""What is to be done for an event: policy, written against ports."""
