"""The report: what artifacts are and how good they are, as one HTML page, Markdown or JSON."""
