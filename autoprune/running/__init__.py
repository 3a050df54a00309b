"""Executors: where jobs run. They know nothing about what a job does."""
