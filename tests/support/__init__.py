"""What both suites share: child processes, the two servers, metrics, plain HTTP."""
