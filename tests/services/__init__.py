"""The contract of FlowService, proven from its caller's side."""
