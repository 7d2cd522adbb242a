"""Requests, pages, schedule, sampling and the step loop: pure Python and numpy."""
