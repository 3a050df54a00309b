"""What to try next: the space, its samplers, lineage, stopping, the Pareto front."""
