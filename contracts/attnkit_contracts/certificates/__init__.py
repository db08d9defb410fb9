"""What a run proves of one variant, on which files, and the badge that shows it.

Start with `certificate`; `evidence` says which files a run was about.
"""
