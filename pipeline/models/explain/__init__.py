"""What a network saw in a picture and why it answered what it did: maps, contributions, one page."""
