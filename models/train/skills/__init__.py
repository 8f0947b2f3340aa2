"""What troupe-small-chat can do: a file for each skill, with a maker that returns one exchange."""
