"""Engines that generate and score."""
