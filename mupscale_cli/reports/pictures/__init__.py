"""Pictures and reports of what the commands found, drawn with matplotlib."""
