"""Datasets: one file per dataset."""
