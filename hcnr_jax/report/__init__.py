"""Shows results: progress on the terminal, tables, pictures, JSON files and the HTML page of an experiment."""
