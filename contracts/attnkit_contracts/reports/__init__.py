"""What a run leaves behind, and how it is written: JSON, Markdown, JUnit's XML, one HTML page.

Start with `records`; `expectations` has failures that are known, `comparison` two reports.
"""
