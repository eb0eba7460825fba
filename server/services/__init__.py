"""gRPC: requests and metadata in, responses out. A method converts, commits or reads, and converts back."""
