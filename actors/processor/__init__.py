"""The processor: everything about a request that needs no GPU, from the client's door to the client's last word."""
