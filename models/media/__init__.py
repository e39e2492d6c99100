"""Images and audio of items: where they may come from, how they become vectors, and how those join the text's."""
