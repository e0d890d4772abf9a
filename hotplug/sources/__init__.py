"""Where events come from. A source waits, converts and hands over."""
