"""Shared by all suites: child processes, the servers, metrics, plain HTTP."""
