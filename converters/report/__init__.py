"""`report.html`: one page for people, drawn from evidence alone."""
