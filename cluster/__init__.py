"""Where Raycommend runs and how it is operated: settings, command line, processes, requirement locks."""
