"""Others' files read: their text found, judged, and parsed in a process of its own."""
