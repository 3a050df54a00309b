"""What to remove and removing it: groups, costs, criteria, plans, the cut."""
