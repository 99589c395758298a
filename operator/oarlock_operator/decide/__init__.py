"""From what is observed to what is to be done: pure, no clock, no network. The heart of the operator."""
