"""Losses, optimizers, schedules, the compiled training step and the loop around it; knows nothing about models."""
