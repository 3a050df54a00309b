"""The report: a search on one page of HTML that needs nothing else. No torch here."""
