"""Serves a Program: pages, schedule, executors, text and HTTP."""
