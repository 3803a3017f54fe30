"""The demo: a campaign of twelve, from nothing to files that play, in under a minute and for nothing."""
