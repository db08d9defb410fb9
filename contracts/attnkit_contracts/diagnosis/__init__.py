"""What is behind a failed check: which named mistake, on which smallest call.

Start with `explain`; what it finds is a `reports.diagnosis.Explanation`, `smallest` shrinks a
call, `scripts` writes the few lines of Python that show it.
"""
