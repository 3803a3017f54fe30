"""The demo: clips, a narration and a night's summaries, from nothing to checked files in under a minute, for free."""
