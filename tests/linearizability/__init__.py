"""What clients of several servers saw of a flow, as a history, and whether one register with revisions could have told it."""
