"""How troupe-small-chat is made: data makers, tokenizer, model, training, export. `python -m models.train chat` runs it all."""
