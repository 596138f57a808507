"""The last step through the whole network: moves restored neurons so that outputs match the references."""
